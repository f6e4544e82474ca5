"""Token rows as arrays: thousands of rows are compared, sorted and cut without a Python object for each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Row = tuple[int, ...]
Tokens = NDArray[np.int32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Token rows, begin ... end of text."""

    tokens: Tokens
    """[n, longest], -1 behind a row's end."""
    lengths: Ints
    """[n]"""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Rows:
        """Rows from sequences of tokens."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        flat = np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum()))
        return cls.of_flat(flat, lengths)

    @classmethod
    def of_flat(cls, flat: NDArray[np.integer], lengths: Ints) -> Rows:
        """Rows from their tokens, one row behind the other."""
        there = np.arange(int(lengths.max(initial=0))) < lengths[:, None]
        tokens = np.full(there.shape, -1, dtype=np.int32)
        tokens[there] = flat
        return cls(tokens, lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: slice | NDArray[np.integer] | NDArray[np.bool_]) -> Rows:
        """Some of the rows."""
        return Rows(self.tokens[index], self.lengths[index])

    def lists(self) -> list[Row]:
        """The rows as tuples."""
        flat = iter(self.tokens[self.tokens >= 0].tolist())
        return [tuple(itertools.islice(flat, length)) for length in self.lengths.tolist()]

    def cut(self, lengths: Ints) -> Rows:
        """The first tokens of each row."""
        columns = np.arange(int(lengths.max(initial=0)))
        return Rows(np.where(columns < lengths[:, None], self.tokens[:, : len(columns)], np.int32(-1)), lengths)

    def padded(self, token: int, length: int) -> Rows:
        """The rows filled up to `length` with a token."""
        tokens = np.full((len(self), length), token, dtype=np.int32)
        width = min(length, self.tokens.shape[1])
        tokens[:, :width] = np.where(self.tokens[:, :width] < 0, np.int32(token), self.tokens[:, :width])
        return Rows(tokens, np.full(len(self), length))

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, one part behind the other."""
        if len(parts) == 1:
            return parts[0]
        widest = max((part.tokens.shape[1] for part in parts), default=0)
        wide = [np.pad(part.tokens, ((0, 0), (0, widest - part.tokens.shape[1])), constant_values=-1) for part in parts]
        lengths = [part.lengths for part in parts]
        return Rows(
            np.concatenate([np.empty((0, widest), np.int32), *wide]), np.concatenate([np.empty(0, np.int64), *lengths])
        )


class TokenRows(Sequence[list[Row]]):
    """What an encoder reads of several prompts' candidates. As a sequence it holds each prompt's rows as tuples.

    `rows`: the rows, none that is nobody's; equal ones may occur. `which` [candidates]: the row of each candidate, those
    of the first prompt before those of the second. `counts` [prompts]: candidates of each prompt. No row is of two prompts.
    """

    def __init__(self, rows: Rows, which: Ints, counts: Ints) -> None:
        self.rows, self.which, self.counts = rows, which, counts

    @classmethod
    def of(cls, asked: Sequence[Sequence[Sequence[int]]]) -> TokenRows:
        """From the rows of each prompt."""
        if isinstance(asked, TokenRows):
            return asked
        rows = Rows.of([row for some in asked for row in some])
        return cls(rows, np.arange(len(rows)), np.fromiter(map(len, asked), np.int64, len(asked)))

    @staticmethod
    def joined(parts: Sequence[TokenRows]) -> TokenRows:
        """The prompts of all parts, one part behind the other."""
        if len(parts) == 1:
            return parts[0]
        firsts = itertools.accumulate((len(part.rows) for part in parts), initial=0)
        which = [part.which + first for part, first in zip(parts, firsts, strict=False)]
        none = np.empty(0, np.int64)
        return TokenRows(
            Rows.joined([part.rows for part in parts]),
            np.concatenate([none, *which]),
            np.concatenate([none, *(part.counts for part in parts)]),
        )

    def of_prompts(self, some: slice) -> TokenRows:
        """What is read of some prompts that stand behind each other."""
        if some == slice(0, len(self)):
            return self
        ends = np.concatenate([[0], np.cumsum(self.counts)])
        which = self.which[ends[some.start] : ends[some.stop]]
        used, of_candidate = np.unique(which, return_inverse=True)
        return TokenRows(self.rows[used], of_candidate, self.counts[some])

    @property
    def owners(self) -> Ints:
        """[rows] the prompt of each row."""
        owners = np.empty(len(self.rows), dtype=np.int64)
        owners[self.which] = np.repeat(np.arange(len(self.counts)), self.counts)
        return owners

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, i):  # type: ignore[no-untyped-def]
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        end = int(self.counts[: i + 1].sum())
        return self.rows[self.which[end - int(self.counts[i]) : end]].lists()


def present(keys: Ints) -> tuple[Ints, Ints, Ints]:
    """Distinct keys, not sorted, which of them each key is, and a place where each stands."""
    most = int(keys.max(initial=-1)) + 1
    if most > 64 * len(keys) + (1 << 20):
        distinct, places, which = np.unique(keys, return_index=True, return_inverse=True)
        return distinct, which, places
    last = np.empty(most, dtype=np.int64)  # only what is written to is ever read
    last[keys] = np.arange(len(keys))
    same = last[keys]
    places = np.flatnonzero(same == np.arange(len(keys)))
    last[keys[places]] = np.arange(len(places))
    return keys[places], last[keys], places
