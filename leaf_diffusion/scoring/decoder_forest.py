"""The fast scorer of language models: what all candidates begin with is computed once, and so is what some of them share.

As in `prefix_forest.py` the states of a token are computed once for all rows that agree up to it. A template before the prompt
is computed once for all batches; what stands behind the prompt (the rest of the template, padding) is computed for each row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, scaled_dot_product_attention, silu

from leaf_diffusion.encoders.causal import Affine, UnsupportedTowerError, detached
from leaf_diffusion.encoders.decoder import DecoderTextEncoder
from leaf_diffusion.encoders.decoder_parts import DecoderBlock, DecoderParts, RMSNorm, decoder_parts
from leaf_diffusion.encoders.features import Feature, SequenceFeature
from leaf_diffusion.scoring.attention import ALIGNED, MOST_CHUNKS, chunk_size, forest_kernels, on_device
from leaf_diffusion.scoring.forest import Forest, SortedRows, build_forest, cut
from leaf_diffusion.scoring.prefix_forest import sequences
from leaf_diffusion.tokens.token_rows import Rows


@dataclass(frozen=True)
class Computed:
    """Of some tokens: the states that are read [n, layers * width], and keys and values of each block [n, 2 * width of these]."""

    states: Tensor
    kv: list[Tensor]


@dataclass(frozen=True)
class Places:
    """Where the tokens of a forest stand and what they read.

    `tokens`: the distinct ones; `of_node` [nodes]: which of them each node is; `at` [nodes]: its place in its row. `keys`
    [chunks * keys]: what each chunk reads, the template's tokens first, then nodes behind these. `masks`: by window what is
    added to the products of queries and keys, [chunks, 1, heads of a group * chunk, keys].
    """

    tokens: Tensor
    of_node: Tensor
    at: Tensor
    keys: Tensor
    masks: dict[int | None, Tensor]


class DecoderForest:
    """Sequence features of token rows of one language model as it is now: make a new one after its weights have changed.

    `dtype` is that of the matrix products; residuals stay in float32. Raises UnsupportedTowerError for models whose parts are
    not known.
    """

    def __init__(self, encoder: DecoderTextEncoder, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype or encoder.dtype
        self.parts = _prepared(decoder_parts(encoder), self.dtype)
        self.reading, self.pad_id, self.name = encoder.reading, encoder.pad_id, encoder.name
        self.device = self.parts.cos.device
        windows = [each.window for each in self.parts.blocks if each.window is not None]
        if (
            self.reading.padded
            and self.reading.masked
            and min(windows, default=self.reading.longest) < self.reading.longest
        ):
            raise UnsupportedTowerError(
                "padding that stands further behind a text than its windows reach reads nothing"
            )
        blocks = len(self.parts.blocks)
        self.layers = [range(blocks + 1)[layer] for layer in self.reading.layers]
        self._padding = encoder.token_embedding().shape[0]  # a token of its own, as a text may hold the padding's
        pairs = zip(*encoder.tokenize(["a", "0"]), strict=False)
        self._template = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        self._start: Computed | None = None
        self.chunk = chunk_size(self.device)
        block = self.parts.blocks[0]
        width, queries, values = (len(each.weight) for each in (block.out, block.query, block.key))
        keys = self.chunk + self.reading.longest + ALIGNED  # of a chunk, at most
        own = self.dtype.itemsize * (3 * queries + 4 * values + 3 * len(block.up.weight))
        read = self.dtype.itemsize * 2 * values * keys // self.chunk
        masks = (
            keys * (queries // values) * (self.dtype.itemsize + 1) * len({each.window for each in self.parts.blocks})
        )
        self.bytes_per_node = 4 * width * (8 + len(self.layers)) + own + read + masks

    def read(self, rows: Rows, feature: Feature) -> Rows:
        """What of the rows is computed: their tokens, and padding where the denoiser is given its states."""
        if not isinstance(feature, SequenceFeature):
            raise ValueError(
                f"{self.name} has token states and no {feature!r} features: ask for Readout() or MeanState()"
            )
        least, most = self.reading.dropped[1], self.reading.longest
        if len(rows) and not (least < int(rows.lengths.min()) and int(rows.lengths.max()) <= most):
            raise ValueError(f"{self.name} takes rows of more than {least} tokens, and of {most} at most")
        return rows.padded(self._padding, most) if self.reading.padded else rows

    def batches(self, rows: SortedRows, feature: Feature, max_nodes: int) -> Iterator[tuple[slice, Tensor]]:
        """Parts of the rows (as read) with their features [n, d], float32; `max_nodes` tokens are computed at once."""
        assert isinstance(feature, SequenceFeature)
        chunk = max(1, min(max_nodes, self.chunk))
        max_nodes = min(max_nodes // chunk, MOST_CHUNKS) * chunk
        start = self._begin(rows) if len(rows) else None
        for part in cut(rows, max_nodes):
            with torch.autocast(self.device.type, enabled=False), forest_kernels(self.device):
                yield part, self._features(rows[part], feature, chunk, start)

    def _begin(self, rows: SortedRows) -> Computed | None:
        """The template, computed when first asked for; None where there is none, or a row does not begin with it."""
        n, tokens = len(self._template), rows.rows.tokens
        if not n or n >= int(rows.rows.lengths.min()) or not (tokens[:, :n] == np.array(self._template)).all():
            return None
        if self._start is None:
            alone = SortedRows(Rows.of([self._template]), np.zeros(1, dtype=np.int64))
            with torch.autocast(self.device.type, enabled=False), forest_kernels(self.device):
                forest = build_forest(alone, self.chunk, ALIGNED)
                found = self._compute(self._places(forest, None), None, keep=True)
            # clones: the memory is used again
            self._start = Computed(found.states[:n].clone(), [each[:n].clone() for each in found.kv])
        return self._start

    def _features(self, rows: SortedRows, feature: SequenceFeature, chunk: int, start: Computed | None) -> Tensor:
        n = 0 if start is None else len(start.states)
        own = SortedRows(Rows(rows.rows.tokens[:, n:], rows.rows.lengths - n), np.maximum(rows.shared - n, 0))
        forest = build_forest(own, chunk, ALIGNED)
        states = self._compute(self._places(forest, start), start).states
        if start is not None:
            states = torch.cat([start.states, states])
        ahead = np.broadcast_to(np.arange(n), (len(rows), n))
        whole = np.concatenate([ahead, forest.paths + n], axis=1)
        first, last = self.reading.dropped
        kept = np.concatenate([whole[:, :first], whole[:, last:]], axis=1)
        paths, lengths = on_device([kept, rows.rows.lengths - (last - first)], self.device)
        return sequences(feature, states, paths, lengths)

    def _places(self, forest: Forest, start: Computed | None) -> Places:
        n = 0 if start is None else len(start.states)
        padding = forest.tokens == self._padding
        arrays = [np.where(padding, self.pad_id, forest.tokens), forest.pairs, forest.positions + n]
        arrays += [padding.astype(np.int64), forest.keys, forest.stops]
        tokens, of_node, positions, unread, keys, stops = on_device(arrays, self.device)
        at = positions[of_node]
        chunks, chunk = keys.shape[0], forest.chunk
        nodes = torch.arange(chunks * chunk, device=self.device).view(chunks, chunk, 1)
        reads = (keys[:, None] <= nodes) & (nodes < stops[:, None])
        if self.reading.masked and bool(padding.any()):  # nobody reads padding, itself included
            spare = nodes >= int(forest.paths.max()) + 1  # what fills the last chunk up reads itself
            reads &= ~unread[of_node].bool()[keys][:, None] | spare
        ahead = torch.arange(n, device=self.device).expand(chunks, n)
        reads = torch.cat([reads.new_ones(chunks, chunk, n), reads], 2)
        places = torch.cat([ahead, at[keys]], 1)
        keys = torch.cat([ahead, keys + n], 1).flatten()
        block = self.parts.blocks[0]
        group = len(block.query.weight) // len(block.key.weight)
        masks = dict[int | None, Tensor]()
        for window in {each.window for each in self.parts.blocks}:
            seen = reads
            if window is not None:
                seen = reads & (places[:, None] > at.view(chunks, chunk, 1) - window)
            zeros = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
            masks[window] = zeros.masked_fill_(~seen, -torch.inf).repeat(1, group, 1)[:, None]
        return Places(tokens, of_node, at, keys, masks)

    def _compute(self, places: Places, start: Computed | None, *, keep: bool = False) -> Computed:
        """States of all nodes and, to `keep`, the keys and values of each block."""
        x = self.parts.embed(places.tokens).float()[places.of_node]
        turns = self.parts.cos[places.at].to(self.dtype), self.parts.sin[places.at].to(self.dtype)
        kept, found = list[Tensor](), {0: x}
        for i, block in enumerate(self.parts.blocks[: max(self.layers)]):
            ahead = None if start is None else start.kv[i]
            x, kv = _run(block, x, turns, places, ahead, self.dtype)
            if keep:
                kept.append(kv)
            if i + 1 in self.layers:
                found[i + 1] = x
        last = len(self.parts.blocks)
        if last in found:
            found[last] = rms_norm(self.parts.norm, found[last])
        return Computed(torch.cat([found[layer] for layer in self.layers], 1), kept)


def _run(
    block: DecoderBlock,
    x: Tensor,
    turns: tuple[Tensor, Tensor],
    places: Places,
    ahead: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """All nodes [n, width] through a block, and their keys and values side by side."""
    h = rms_norm(block.norm1, x).to(dtype)
    q, k, v = (linear(h, each.weight, each.bias) for each in (block.query, block.key, block.value))
    q = _turned(_by_head(block, block.norm_q, q), turns)
    k = _turned(_by_head(block, block.norm_k, k), turns)
    kv = torch.cat([k.flatten(1), v], 1)
    whole = kv if ahead is None else torch.cat([ahead, kv])
    attended = _attend(block, q, whole[places.keys], places.masks[block.window])
    h = linear(attended, block.out.weight, block.out.bias).float()
    x = x + (h if block.after1 is None else rms_norm(block.after1, h))
    h = rms_norm(block.norm2, x).to(dtype)
    gate = linear(h, block.gate.weight, block.gate.bias)
    gate = silu(gate, inplace=True) if block.act == "silu" else gelu(gate, approximate="tanh")
    h = linear(gate.mul_(linear(h, block.up.weight, block.up.bias)), block.down.weight, block.down.bias).float()
    return x + (h if block.after2 is None else rms_norm(block.after2, h)), kv


def _by_head(block: DecoderBlock, norm: RMSNorm | None, x: Tensor) -> Tensor:
    """[n, heads, head width], each head normalised where the block does that."""
    x = x.view(len(x), -1, block.head_width)
    return x if norm is None else rms_norm(norm, x).to(x.dtype)


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys [n, heads, head width], turned by their places."""
    (cos, sin), half = turns, x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos[:, None] + turned * sin[:, None]


def _attend(block: DecoderBlock, q: Tensor, kv: Tensor, masked: Tensor) -> Tensor:
    """Queries [nodes, heads, head width] over the keys and values [chunks * keys, ...] of their chunks: the heads that share keys
    are so many queries more."""
    chunks, _, group_chunk, keys = masked.shape
    nodes, heads, width = q.shape
    chunk = nodes // chunks
    group = group_chunk // chunk
    q = (
        q.view(chunks, chunk, heads // group, group, width)
        .permute(0, 2, 3, 1, 4)
        .reshape(chunks, -1, group_chunk, width)
    )
    k, v = kv.view(chunks, keys, 2, heads // group, width).permute(2, 0, 3, 1, 4)
    if block.cap is None:
        found = scaled_dot_product_attention(q, k, v, attn_mask=masked, scale=block.scale)
    else:
        logits = torch.tanh((q @ k.transpose(2, 3)) * (block.scale / block.cap)) * block.cap + masked
        found = torch.softmax(logits.float(), -1).to(v.dtype) @ v
    found = found.view(chunks, heads // group, group, chunk, width).permute(0, 3, 1, 2, 4)
    return found.reshape(nodes, heads * width)


def rms_norm(norm: RMSNorm, x: Tensor) -> Tensor:
    """Float32, whatever comes in."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight


def _prepared(parts: DecoderParts, dtype: torch.dtype) -> DecoderParts:
    """Without gradients, products in `dtype`."""

    def ready(layer: Affine) -> Affine:
        return detached(layer, dtype)

    blocks = [
        replace(
            each, query=ready(each.query), key=ready(each.key), value=ready(each.value), out=ready(each.out),
            gate=ready(each.gate), up=ready(each.up), down=ready(each.down),
        )
        for each in parts.blocks
    ]  # fmt: skip
    return replace(parts, blocks=blocks)
