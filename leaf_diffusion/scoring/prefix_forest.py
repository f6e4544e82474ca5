"""The fast scorer: the plain scorer's numbers from far fewer tokens.

Candidates of one prompt are almost the same sentence, and the tower is causal: the state of a token is computed once
for all rows that agree up to it (`forest.py`); nothing behind end-of-text is computed, and in the last block nothing
but end-of-text itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, pad, silu

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.causal import QUICK, Affine, Block, CausalParts, causal_parts, detached
from leaf_diffusion.encoders.features import Feature, SequenceFeature, hidden_of
from leaf_diffusion.scoring.attention import ALIGNED, MOST_CHUNKS, attend, chunk_size, forest_kernels, mask, on_device
from leaf_diffusion.scoring.forest import SortedRows, build_forest, cut
from leaf_diffusion.scoring.int8 import Int8, multiplies_int8
from leaf_diffusion.tokens.token_rows import Ints, Rows

STATES = 1 << 22
"""Numbers of token states that are read together as sequences."""


class PrefixForest:
    """Features of token rows of one tower as it is now: make a new one after its weights have changed.

    `dtype` is that of the matrix products; residuals stay in float32. int8 is of the blocks' products but the last attention's;
    attention itself is float32 then. Raises UnsupportedTowerError for towers whose parts are not known.
    """

    def __init__(self, encoder: TextEncoder, dtype: torch.dtype | None = None) -> None:
        int8 = dtype == torch.int8
        self.dtype = torch.float32 if int8 else dtype or encoder.dtype
        self.few_launches = few_launches(encoder.device)
        self._folded = self.few_launches or int8
        self.parts = _prepared(causal_parts(encoder), self.dtype, fold=self._folded)
        blocks = self.parts.blocks if int8 else []
        layers = [layer for each in blocks for layer in (*each.qkv, each.out, each.up, each.down)]
        self._int8 = {id(layer): Int8.of(layer) for layer in layers}
        width = self.parts.positions.shape[1]
        widest = max(len(block.up.weight) for block in self.parts.blocks)
        compiled = encoder.device.type == "cpu" and self.dtype.itemsize < 4
        self._filled: Callable[[int], int] = recurring if compiled else int
        self._kept: dict[str, Tensor] = {}
        self.chunk = chunk_size(encoder.device)
        keys = self.chunk + self.parts.context_length + ALIGNED  # of a chunk, at most
        full = 12 * width  # residual, normed, distinct
        # queries, keys, values, cast, attention and its like; the keys and values of chunks; the widest layer twice
        own = self.dtype.itemsize * (6 * width + 2 * width * keys // self.chunk + 2 * widest)
        own += widest if int8 else 0
        masks = keys * (self.dtype.itemsize + 3)  # and what they are made of
        self.bytes_per_node = full + own + masks
        if self.few_launches and self.dtype.itemsize < 4:
            # layer norms and their casts: an H100's peak was 12% above the rest
            self.bytes_per_node = self.bytes_per_node * 7 // 6

    def read(self, rows: Rows, feature: Feature) -> Rows:
        """What of the rows is read: tokens up to the first end-of-text or, for all states, up to the context's end."""
        if (hidden := hidden_of(feature)) is not None:
            everything = hidden.positions == "all"
            return rows.padded(self.parts.pad_id, self.parts.context_length) if everything else rows
        ends = rows.tokens == self.parts.eos_id
        if not ends.any(1).all():
            raise ValueError(f"a token row has no end-of-text ({self.parts.eos_id})")
        lengths = ends.argmax(1) + 1
        return rows if (lengths == rows.lengths).all() else rows.cut(lengths)

    def batches(self, rows: SortedRows, feature: Feature, max_nodes: int) -> Iterator[tuple[slice, Tensor]]:
        """Parts of the rows (as read) with their features [n, d], float32; `max_nodes` tokens are computed at once."""
        if hidden_of(feature) is not None:
            max_nodes //= 4  # the features themselves are as large
        chunk = max(1, min(max_nodes, self.chunk))
        max_nodes = min(max_nodes // chunk, MOST_CHUNKS) * chunk  # the last chunk is filled up
        if self._filled(max_nodes) > max_nodes:
            max_nodes = max_nodes * 8 // 9
        for part in cut(rows, max_nodes):
            with (
                torch.autocast(self.parts.positions.device.type, enabled=False),
                forest_kernels(self.parts.positions.device),
            ):
                yield part, self._features(rows[part], feature, chunk)

    def _features(self, rows: SortedRows, feature: Feature, chunk: int) -> Tensor:
        parts, device = self.parts, self.parts.positions.device
        forest = build_forest(rows, chunk, ALIGNED, self._filled)
        hidden = hidden_of(feature)
        states = hidden is not None
        pairs, last = self._filled(len(forest.tokens)), self._filled(len(rows))
        arrays = [
            _fill(forest.tokens, pairs), _fill(forest.positions, pairs), forest.pairs,
            _fill(forest.ends, last), forest.keys, forest.stops,
        ]  # fmt: skip
        if states:
            arrays += [forest.paths, rows.rows.lengths]
        tokens, positions, of_pair, ends, keys, stops, *whole = on_device(arrays, device)
        masked, keys = mask(keys, stops, forest.chunk, self.dtype), keys.flatten()
        # the first block's queries, keys and values depend on token and place alone, and these recur
        first = parts.embed(tokens).float() + parts.positions[positions]
        x = first[of_pair]
        depth = len(parts.blocks)
        if hidden is not None and hidden.layer != -1:
            depth = range(depth + 1)[hidden.layer]
        for i, block in enumerate(parts.blocks[:depth]):
            only = ends if i == depth - 1 and not states else None
            x = self._block(block, x, keys, masked, only, (first, of_pair) if i == 0 else None)
        if not states and not depth:
            x = x[ends]
        if hidden is None or hidden.layer == -1:
            x = _norm(parts.norm, x)
        if hidden is not None:
            paths, lengths = whole
            if isinstance(feature, SequenceFeature):
                return sequences(feature, x, paths, lengths)
            return _states(x, paths, lengths, parts.context_length)
        if feature == "projected":
            assert parts.projection is not None
            x = linear(x.to(self.dtype), parts.projection.weight, parts.projection.bias).float()
        return x[: len(rows)]

    def _block(
        self,
        block: Block,
        x: Tensor,
        keys: Tensor,
        masked: Tensor,
        only: Tensor | None,
        recurring: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """All nodes [n, width] through a block; with `only`, their keys and values but no other node's output.

        `keys`: the nodes that each chunk reads. `recurring`: distinct rows of `x`, and which of them each row is.
        """
        width = x.shape[1]
        (qkv,) = block.qkv
        if recurring is not None:
            distinct, of_row = recurring
            h = linear(_norm(block.norm1, distinct).to(self.dtype), qkv.weight, qkv.bias)
            q, kv, keys = h[:, :width][of_row], h[:, width:], of_row[keys]
        elif only is None:
            h = self._linear("qkv", _norm(block.norm1, x), qkv)
            q, kv = h.split([width, 2 * width], dim=1)
        else:
            h = _norm(block.norm1, x).to(self.dtype)
            bias_q, bias_kv = (None, None) if qkv.bias is None else qkv.bias.split([width, 2 * width])
            q = self._workspace("q", len(x), width).zero_()
            q[only] = linear(h[only], qkv.weight[:width], bias_q)
            kv = self._linear("qkv", h, Affine(qkv.weight[width:], bias_kv))
        read = torch.index_select(kv, 0, keys, out=self._workspace("read", len(keys), 2 * width))
        attended = attend(q, read, masked, block.heads)
        if only is not None:
            x, attended = x[only], attended[only]
        self._add(x, attended, block.out)
        if block.quick:  # 1.702 goes into one product and comes out of the next
            scale = 1.0 if self._folded else QUICK
            h = silu(self._linear("up", _norm(block.norm2, x), block.up, scale), inplace=True)
            return self._add(x, h, block.down, 1 / scale)
        h = gelu(self._linear("up", _norm(block.norm2, x), block.up))
        return self._add(x, h, block.down)

    def _linear(self, name: str, x: Tensor, layer: Affine, scale: float = 1.0) -> Tensor:
        """scale * layer(x), in the memory of that name."""
        if small := self._int8.get(id(layer)):
            return small(x)
        out, h = self._workspace(name, len(x), len(layer.weight)), x.to(self.dtype)
        bias = h.new_zeros(()) if layer.bias is None else layer.bias
        return torch.addmm(bias, h, layer.weight.T, beta=scale, alpha=scale, out=out)

    def _add(self, x: Tensor, h: Tensor, layer: Affine, scale: float = 1.0) -> Tensor:
        """x + weight h * scale + bias, in the place of x."""
        if small := self._int8.get(id(layer)):
            return x.add_(small(h))
        if self.few_launches and scale == 1.0:
            return x.add_(linear(h, layer.weight, layer.bias))
        if h.dtype == x.dtype:
            x.addmm_(h, layer.weight.T, alpha=scale)
        else:
            x.add_(h @ layer.weight.T, alpha=scale)
        return x if layer.bias is None else x.add_(layer.bias)

    def _workspace(self, name: str, rows: int, columns: int) -> Tensor:
        """Memory [rows, columns] that is used again and again: fresh memory costs a tenth of the time on a CPU, for its
        pages have to be cleared."""
        if name not in self._kept or self._kept[name].numel() < rows * columns:
            with torch.inference_mode(False):  # usable in both modes
                self._kept[name] = torch.empty(rows * columns, dtype=self.dtype, device=self.parts.positions.device)
        return self._kept[name][: rows * columns].view(rows, columns)


def recurring(n: int) -> int:
    """At least n, by an eighth more at most but for few: a CPU's products of numbers in half precision are compiled for each
    number of rows, which takes milliseconds, so there have to be few such numbers."""
    step = max(8, 1 << max(0, n.bit_length() - 4))
    return -(-n // step) * step


def _fill(indices: Ints, n: int) -> Ints:
    """The indices and as many zeros as n is more."""
    return np.append(indices, np.zeros(n - len(indices), dtype=np.int64))


def _states(x: Tensor, paths: Tensor, lengths: Tensor, context: int) -> Tensor:
    """The rows' states [rows, context * width], zero behind their ends."""
    n, longest = paths.shape
    there = torch.arange(longest, device=x.device) < lengths[:, None]
    states = torch.where(there[..., None], x[paths.flatten()].view(n, longest, -1), 0.0)
    return pad(states, (0, 0, 0, context - longest)).flatten(1)


def sequences(feature: SequenceFeature, x: Tensor, paths: Tensor, lengths: Tensor) -> Tensor:
    """The feature of each row's states [rows, d], of few rows at a time: their states side by side are many."""
    longest = paths.shape[1]
    there = torch.arange(longest, device=x.device) < lengths[:, None]
    some = max(1, STATES // (longest * x.shape[1]))
    parts = zip(paths.split(some), there.split(some), strict=True)
    return torch.cat([feature(x[path.flatten()].view(len(path), longest, -1), kept) for path, kept in parts])


def few_launches(device: torch.device) -> bool:
    """Whether a kernel's launch costs more than some padding: so on GPUs."""
    return device.type == "cuda"


def _prepared(parts: CausalParts, dtype: torch.dtype, *, fold: bool) -> CausalParts:
    """Without gradients, products in `dtype`, norms and positions in float32, query, key and value as one layer.

    `fold`: QuickGELU's factor goes into the weights around it, where the bias is added within the product.
    """
    full = torch.float32
    blocks = []
    for block in parts.blocks:
        qkv = [detached(each, dtype) for each in block.qkv]
        if len(qkv) > 1:
            biases = [each.bias for each in qkv if each.bias is not None]
            qkv = [Affine(torch.cat([each.weight for each in qkv]), torch.cat(biases) if biases else None)]
        up, down = block.up, block.down
        if fold and block.quick:
            up, down = _times(up, QUICK), replace(down, weight=down.weight.detach().to(full) / QUICK)
        blocks.append(
            replace(
                block, norm1=detached(block.norm1, full), qkv=tuple(qkv), out=detached(block.out, dtype),
                norm2=detached(block.norm2, full), up=detached(up, dtype), down=detached(down, dtype),
            )
        )  # fmt: skip
    return replace(
        parts,
        positions=parts.positions.detach().to(full),
        blocks=blocks,
        norm=detached(parts.norm, full),
        projection=None if parts.projection is None else detached(parts.projection, dtype),
    )


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The precision that autocast asks for on the device, None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


@cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has products in bfloat16 (AVX-512 BF16; others are believed to). Without, one takes 8 times as long as in
    float32."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16", True))


def half_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, float16 on a GPU that has no bfloat16, or float32 on a CPU that has no products in it."""
    if device.type == "cpu" and not multiplies_bfloat16():
        return torch.float32
    return torch.float16 if device.type == "cuda" and not torch.cuda.is_bf16_supported(False) else torch.bfloat16


def screening_dtype(device: torch.device) -> torch.dtype:
    """That of `half_dtype`, or int8 on a CPU that has no products in bfloat16."""
    half = half_dtype(device)
    return torch.int8 if half == torch.float32 and multiplies_int8() else half


def _times(layer: Affine, factor: float) -> Affine:
    """The layer whose output is `factor` times this one's."""
    bias = None if layer.bias is None else layer.bias.detach().float() * factor
    return Affine(layer.weight.detach().float() * factor, bias)


def _norm(norm: Affine, x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
