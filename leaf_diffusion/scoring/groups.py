"""The branches of a forest as a device computes them: gathered keys and values, and queries as a rectangle.

On a CPU a group is the rows that own equally many tokens, so that nothing is padded. On a GPU, where each group costs the
launch of its kernels in every block, it is the rows of about the same length; the fewer tokens of some are filled up with
their last one, whose results are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from leaf_diffusion.scoring.forest import Branches, Forest, Ints

STEP = 8
"""Lengths of rows on a GPU are rounded up to this: its attention kernels want masks in multiples of 16 bytes."""
ROOM = 4
"""Gathered positions on a GPU at once, for each token that may be computed at once."""
MOST_ROWS = 60_000
"""Rows in one call of an attention kernel (a CUDA grid has at most 65,535 blocks along the batch)."""


@dataclass(frozen=True)
class Group:
    """Some rows of a forest on the device: their slices of nodes and rows, paths, lengths, causal mask."""

    nodes: slice
    rows: slice
    paths: Tensor
    """[rows, longest]"""
    lengths: Tensor
    """[rows]"""
    mask: Tensor
    """[rows, 1, most, longest]: bool, or what is added to the products of queries and keys."""
    spread: Tensor | None
    """[rows * most] which of the group's nodes stands where; None: each owns `most`."""
    collect: Tensor | None
    """[nodes] where each node stands."""

    def attend(self, q: Tensor, kv: Tensor, heads: int, *, last: bool) -> Tensor:
        """q [nodes, width] over the keys and values of their paths [rows * longest, 2 * width]; `last`: one query a row."""
        n, longest = self.paths.shape
        split = kv.view(n, longest, 2, heads, -1).permute(2, 0, 3, 1, 4)
        if self.spread is not None and not last:
            q = q[self.spread]
        q = q.view(n, -1, heads, split.shape[-1]).transpose(1, 2)
        result = scaled_dot_product_attention(
            q, split[0], split[1], attn_mask=self.mask[:, :, -1:] if last else self.mask
        )
        result = result.transpose(1, 2).flatten(0, 1).flatten(1)
        return result if self.collect is None or last else result[self.collect]

    def states(self, x: Tensor, context: int) -> Tensor:
        """The rows' states [rows, context * width], zero behind their ends."""
        n, longest = self.paths.shape
        there = torch.arange(longest, device=x.device) < self.lengths[:, None]
        states = torch.where(there[..., None], x[self.paths.flatten()].view(n, longest, -1), 0.0)
        return pad(states, (0, 0, 0, context - longest)).flatten(1)


def on_device(arrays: Sequence[Ints], device: torch.device) -> list[Tensor]:
    """Indices on the device, int64; on a GPU by one copy that nothing waits for."""
    if device.type != "cuda":
        return [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]
    ends = np.cumsum([array.size for array in arrays])
    sent = torch.empty(int(ends[-1]), dtype=torch.int32, pin_memory=True)  # a copy from other memory would wait
    filled = sent.numpy()
    for array, end in zip(arrays, ends, strict=True):
        filled[end - array.size : end] = array.reshape(-1)
    parts = sent.to(device, non_blocking=True).long().split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def in_pieces(forest: Forest, room: int) -> Iterator[Branches]:
    """The branches, cut where more than `room` positions would be gathered at once."""
    for branches in forest.branches:
        at_once = min(MOST_ROWS, max(1, room // branches.paths.shape[1]))
        begins = branches.first + np.cumsum(branches.own) - branches.own
        for low in range(0, len(begins), at_once):
            some = slice(low, low + at_once)
            yield Branches(int(begins[low]), branches.own[some], branches.paths[some], branches.begins[some])


def groups(branches: Sequence[Branches], shapes: Sequence[Tensor], dtype: torch.dtype | None) -> list[Group]:
    """`shapes`: each branch's paths, own and begins on the device, one after another. `dtype`: that of the masks, which are
    added then; None: bool."""
    made, row = [], 0
    for i, each in enumerate(branches):
        paths, own, begins = shapes[3 * i : 3 * i + 3]
        n, most, total = len(each.own), int(each.own.max()), int(each.own.sum())
        column = torch.arange(most, device=paths.device)
        # [rows, most]: beyond its own, a row's last token again
        place = column if total == n * most else torch.minimum(column, own[:, None] - 1)
        mask = torch.arange(paths.shape[1], device=paths.device) <= (begins[:, None] + place)[..., None]
        if dtype is not None:
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
        spread = collect = None
        if total < n * most:
            start = own.cumsum(0) - own
            spread = (start[:, None] + place).flatten()
            # the k-th node of the group belongs to the row whose start is the last one before it
            of_row = torch.repeat_interleave(own, output_size=total)
            collect = (
                torch.arange(total, device=own.device) + (most * torch.arange(n, device=own.device) - start)[of_row]
            )
        nodes = slice(each.first, each.first + total)
        made.append(Group(nodes, slice(row, row + n), paths, begins + own, mask[:, None], spread, collect))
        row += n
    return made
