"""Token rows as a forest of shared prefixes: which tokens have to be computed, and who attends to what.

In a causal tower the state of a token depends on the tokens up to it alone, so rows that agree up to a token share its
state. Sorted rows give the forest for free: a row owns the positions from its first difference to its predecessor on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leaf_diffusion.encoders.token_rows import Ints, Rows


@dataclass(frozen=True)
class Branches:
    """Rows that are computed together; the tokens they own are the nodes from `first` on, row by row."""

    first: int
    own: Ints
    """[rows] how many tokens each row owns."""
    paths: Ints
    """[rows, longest] node of every position of each row; positions behind a row's end repeat node 0."""
    begins: Ints
    """[rows] position of the first token that each row owns."""


@dataclass(frozen=True)
class Forest:
    """Rows (sorted) as nodes. Node order: by branches, within these by row, within a row by position."""

    tokens: Ints
    """[distinct] token of each distinct pair of token and position."""
    positions: Ints
    """[distinct] its position."""
    pairs: Ints
    """[nodes] which of these pairs each node is."""
    branches: list[Branches]
    order: Ints
    """[rows] the row (in the sorted order) that each row of the branches is."""
    ends: Ints
    """[rows] node of each row's last token, rows in the branches' order."""


@dataclass(frozen=True)
class SortedRows:
    """Distinct rows in the order of their tokens."""

    rows: Rows
    shared: Ints
    """[n] how many tokens each row shares with the row before it."""

    def __len__(self) -> int:
        return len(self.shared)

    def __getitem__(self, index: slice) -> SortedRows:
        return SortedRows(self.rows[index], self.shared[index])


def distinct(rows: Rows) -> tuple[SortedRows, Ints, Ints]:
    """The distinct rows; `order` [rows], which sorts what was given; and which distinct row each of the sorted ones is."""
    order = _sorted(rows.tokens)
    tokens, lengths = rows.tokens[order], rows.lengths[order]
    differs = np.ones((len(rows), tokens.shape[1] + 1), dtype=bool)
    differs[1:, :-1] = tokens[1:] != tokens[:-1]
    shared = differs.argmax(1)
    shared[:1] = 0
    new = shared < tokens.shape[1]
    new[:1] = True
    return SortedRows(Rows(tokens[new], lengths[new]), shared[new]), order, np.cumsum(new) - 1


def _sorted(tokens: NDArray[np.int32]) -> Ints:
    """The order of rows by their tokens, a row before those that it begins."""
    small = tokens.max(initial=0) < (1 << 16) - 1
    each = 4 if small else 2  # tokens in a number of 64 bits, the first in the highest ones
    width = -(-tokens.shape[1] // each) * each
    wide = np.zeros((len(tokens), width), dtype=">u2" if small else ">u4")
    wide[:, : tokens.shape[1]] = tokens + 1
    return np.lexsort(wide.view(">u8").astype(np.uint64).T[::-1]) if width else np.arange(len(tokens))


def cut(rows: SortedRows, max_nodes: int) -> Iterator[slice]:
    """Consecutive parts of the rows of at most `max_nodes` nodes each (a single row may have more)."""
    lengths = rows.rows.lengths
    nodes, start = np.cumsum(lengths - rows.shared), 0
    while start < len(rows):
        # the part's first row is there in full
        most = max_nodes + nodes[start] - lengths[start]
        end = max(start + 1, int(np.searchsorted(nodes, most, side="right")))
        yield slice(start, end)
        start = end


def plant(rows: SortedRows, step: int = 0) -> Forest:
    """The forest of sorted, distinct, non-empty rows.

    Branches are the rows that own equally many tokens: nothing is padded. With `step` they are the rows of equal length
    rounded up to it, and so are their paths: few branches, for a device on which each costs the launch of its kernels.
    """
    lengths, begins = rows.rows.lengths, rows.shared.copy()
    begins[0] = 0
    own = lengths - begins
    longest = -(-int(lengths.max()) // (step or 1)) * (step or 1)
    columns = np.arange(longest)
    there = columns < lengths[:, None]

    key = -(-lengths // step) if step else own
    order = np.argsort(key, kind="stable")
    firsts = np.empty(len(rows), dtype=np.int64)
    firsts[order] = np.cumsum(own[order]) - own[order]
    # the owner of each position of a row's path: the last row before it that owns that position
    owner = np.where(there & (columns >= begins[:, None]), np.arange(len(rows))[:, None], 0)
    np.maximum.accumulate(owner, axis=0, out=owner)
    shift = firsts - begins
    paths = np.where(there, shift[owner] + columns, 0)

    row = np.repeat(order, own[order])
    column = np.arange(len(row)) - shift[row]
    pairs, of_node = np.unique(rows.rows.tokens[row, column].astype(np.int64) * longest + column, return_inverse=True)
    branches = []
    for low, high in itertools.pairwise(np.flatnonzero(np.diff(key[order], prepend=-1, append=-1))):
        mine = order[low:high]
        wide = int(key[mine[0]]) * step or int(lengths[mine].max())
        branches.append(Branches(int(firsts[mine[0]]), own[mine], paths[mine, :wide], begins[mine]))
    ends = (firsts + own - 1)[order]
    return Forest(pairs // longest, pairs % longest, of_node.reshape(-1), branches, order, ends)
