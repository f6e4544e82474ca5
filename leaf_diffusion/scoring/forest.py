"""Token rows as a forest of shared prefixes: which tokens have to be computed, and who attends to what.

In a causal tower the state of a token depends on the tokens up to it alone, so rows that agree up to a token share its
state. Sorted rows give the forest for free: a row owns the positions from its first difference to its predecessor on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leaf_diffusion.tokens.token_rows import Ints, Rows, present


@dataclass(frozen=True)
class Forest:
    """Rows (sorted) as nodes, row by row and within a row by position: a node's descendants follow it.

    Nodes come in chunks of equal size; the last chunk is filled up with nodes that nothing reads.
    """

    tokens: Ints
    """[distinct] token of each distinct pair of token and position."""
    positions: Ints
    """[distinct] its position."""
    pairs: Ints
    """[nodes] which of these pairs each node is."""
    ends: Ints
    """[rows] node of each row's last token."""
    paths: Ints
    """[rows, longest] node of every position of each row; positions behind a row's end repeat node 0."""
    chunk: int
    """Nodes of a chunk."""
    keys: Ints
    """[chunks, keys] nodes that the chunk's nodes may attend to: ancestors of the first, then the chunk itself."""
    stops: Ints
    """[chunks, keys] the first node behind each key's descendants; 0 where the key only fills up."""


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


def build_forest(rows: SortedRows, chunk: int, aligned: int = 1, filled: Callable[[int], int] = int) -> Forest:
    """The forest of sorted, distinct, non-empty rows, in chunks of `chunk` nodes (fewer where there are not as many); there are
    at least `filled(n)` instead of n nodes, and the number of a chunk's keys is a multiple of `aligned`."""
    lengths, begins = rows.rows.lengths, rows.shared.copy()
    begins[0] = 0
    n, columns, owned = len(rows), np.arange(int(lengths.max())), lengths - begins
    firsts = np.cumsum(owned) - owned
    # the owner of each position of a row's path: the last row up to it that owns that position
    owns, each = begins[:, None] <= columns, np.arange(n)[:, None]
    owner = np.maximum.accumulate(np.where(owns, each, 0), axis=0)
    paths = np.where(columns < lengths[:, None], (firsts - begins)[owner] + columns, 0)

    row = np.repeat(np.arange(n), owned)
    total = len(row)
    column = np.arange(total) - (firsts - begins)[row]
    tokens, of_token, _ = present(rows.rows.tokens[row, column].astype(np.int64))
    pairs, of_node, _ = present(of_token * len(columns) + column)

    # the descendants of a node end at the next row that owns its position too
    behind = np.full((n + 1, len(columns)), n)
    behind[:n] = np.where(owns, each, n)
    behind = np.minimum.accumulate(behind[::-1], axis=0)[::-1]
    chunk = min(chunk, -(-filled(total) // aligned) * aligned)
    chunks = -(-filled(total) // chunk)
    stops = np.arange(1, chunks * chunk + 1)
    stops[:total] = np.append(firsts, total)[behind[row + 1, column]]

    heads = np.arange(chunks) * chunk
    first = np.minimum(heads, total - 1)
    above = np.where(heads < total, column[first], 0)  # how many ancestors the first node of a chunk has
    most = -(-(int(above.max()) + chunk) // aligned) * aligned - chunk
    ancestors, there = np.zeros((chunks, most), dtype=np.int64), np.arange(most) < above[:, None]
    ancestors[there] = paths[row[first], :most][there[:, : len(columns)]]
    keys = np.concatenate([ancestors, heads[:, None] + np.arange(chunk)], axis=1)
    reaches = np.where(np.pad(there, ((0, 0), (0, chunk)), constant_values=True), stops[keys], 0)
    node_pairs = np.zeros(chunks * chunk, dtype=np.int64)
    node_pairs[:total] = of_node
    ends = firsts + owned - 1
    return Forest(tokens[pairs // len(columns)], pairs % len(columns), node_pairs, ends, paths, chunk, keys, reaches)
