"""Token rows as a forest of shared prefixes: which tokens have to be computed, and who attends to what.

In a causal tower the state of a token depends on the tokens up to it alone, so rows that agree up to a token share its
state. Sorted rows give the forest for free: a row owns the positions from its first difference to its predecessor on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Row = tuple[int, ...]
BLOCK = 1 << 14
"""Rows that are compared at once."""


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


def cut(rows: Sequence[Row], max_nodes: int) -> Iterator[Sequence[Row]]:
    """Consecutive parts of sorted rows of at most `max_nodes` nodes each (a single row may have more)."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    own = np.empty(len(rows), dtype=np.int64)
    for low in range(0, len(rows), BLOCK):
        before = max(0, low - 1)
        _, owned = _table(rows[before : low + BLOCK], lengths[before : low + BLOCK])
        own[low : low + BLOCK] = owned[low - before :].sum(1)
    nodes, start = np.cumsum(own), 0
    while start < len(rows):
        # the part's first row is there in full
        most = max_nodes + nodes[start] - lengths[start]
        end = max(start + 1, int(np.searchsorted(nodes, most, side="right")))
        yield rows[start:end]
        start = end


def _table(rows: Sequence[Row], lengths: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """[rows, longest] tokens (-1 behind a row's end), and which of them stand behind the first difference to the row
    before."""
    there = np.arange(int(lengths.max())) < lengths[:, None]
    tokens = np.full(there.shape, -1, dtype=np.int64)
    tokens[there] = np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(lengths.sum()))
    differs = np.ones(there.shape, dtype=bool)
    differs[1:] = np.logical_or.accumulate(tokens[1:] != tokens[:-1], axis=1)
    return tokens, differs & there


def plant(rows: Sequence[Row], step: int = 0) -> Forest:
    """The forest of sorted, distinct, non-empty rows.

    Branches are the rows that own equally many tokens: nothing is padded. With `step` they are the rows of equal length
    rounded up to it, and so are their paths: few branches, for a device on which each costs the launch of its kernels.
    """
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    tokens, owned = _table(rows, lengths)
    longest = tokens.shape[1]
    columns = np.arange(longest)
    there = columns < lengths[:, None]
    own = owned.sum(1)
    begins = lengths - own

    key = -(-lengths // step) if step else own
    order = np.argsort(key, kind="stable")
    firsts = np.empty(len(rows), dtype=np.int64)
    firsts[order] = np.concatenate([[0], np.cumsum(own[order])[:-1]])
    # the owner of each position of a row's path: the last row before it that owns that position
    owner = np.maximum.accumulate(np.where(owned, np.arange(len(rows))[:, None], -1), axis=0)
    paths = np.where(there, firsts[owner] + columns - begins[owner], 0)

    row, column = np.nonzero(owned)
    named = np.empty(len(row), dtype=np.int64)
    named[firsts[row] + column - begins[row]] = tokens[row, column] * longest + column
    distinct, pairs = np.unique(named, return_inverse=True)
    branches = []
    for low, high in itertools.pairwise(np.flatnonzero(np.diff(key[order], prepend=-1, append=-1))):
        mine = order[low:high]
        wide = int(key[mine[0]]) * step or int(lengths[mine].max())
        path = np.pad(paths[mine, :wide], ((0, 0), (0, max(0, wide - longest))))
        branches.append(Branches(int(firsts[mine[0]]), own[mine], path, begins[mine]))
    ends = (firsts + own - 1)[order]
    return Forest(distinct // longest, distinct % longest, pairs.reshape(-1), branches, order, ends)
