"""The tokens of chunks of text, remembered in arrays."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEMO = 1 << 18
"""Chunks that are remembered, some 100 bytes each."""
PIECE = re.compile("'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^ a-z0-9]+")
"""CLIP's pieces of lower-case ASCII, none of which is joined with another."""
NOTHING = 0
"""The number of the chunk without characters."""


class TokenMemo:
    """Numbers chunks of lower-case text; `tokens[starts[i] : starts[i] + lengths[i]]` are those of chunk i.

    `tokenize`: texts to rows, begin ... end of text. `pieces`: pieces to their tokens, for tokenizers that split as `PIECE`
    does; then only pieces that were never seen are read.
    """

    def __init__(
        self,
        tokenize: Callable[[Sequence[str]], list[list[int]]],
        pieces: Callable[[Sequence[str]], list[tuple[int, ...]]] | None = None,
    ) -> None:
        self._tokenize, self.pieces = tokenize, pieces
        self.forget()

    def forget(self) -> None:
        """Start anew where too much is remembered; numbers lose their meaning."""
        self._of_text: dict[str, int] = {"": NOTHING}
        self._of_piece: dict[str, tuple[int, ...]] = {}
        self.tokens = np.zeros(1 << 10, dtype=np.int32)
        self.starts, self.lengths = np.zeros(1 << 10, dtype=np.int64), np.zeros(1 << 10, dtype=np.int64)
        self._used = 0

    def shrink(self) -> None:
        """To be called between reads."""
        if len(self._of_text) + len(self._of_piece) > MEMO:
            self.forget()

    def numbers(self, texts: list[str]) -> NDArray[np.int64]:
        """The number of each chunk; unknown ones are tokenized, all together."""
        known = self._of_text
        numbers = np.fromiter(map(known.get, texts, itertools.repeat(-1)), np.int64, len(texts))
        missing = np.flatnonzero(numbers < 0)
        if len(missing):
            new = list(dict.fromkeys(texts[i] for i in missing.tolist()))
            self._learn(new)
            numbers[missing] = [known[texts[i]] for i in missing.tolist()]
        return numbers

    def _learn(self, texts: list[str]) -> None:
        if self.pieces is None:
            rows: list[Sequence[int]] = [row[1:-1] for row in self._tokenize(texts)]
        else:
            split, of_piece = [PIECE.findall(text) for text in texts], self._of_piece
            unknown = list({piece for some in split for piece in some if piece not in of_piece})
            of_piece.update(zip(unknown, self.pieces(unknown), strict=True))
            rows = [
                of_piece[some[0]] if len(some) == 1 else [token for piece in some for token in of_piece[piece]]
                for some in split
            ]
        first = len(self._of_text)
        self._of_text.update(zip(texts, range(first, first + len(texts)), strict=True))
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        self.lengths = _grown(self.lengths, first + len(rows))
        self.starts = _grown(self.starts, first + len(rows))
        self.lengths[first : first + len(rows)] = lengths
        self.starts[first : first + len(rows)] = self._used + np.cumsum(lengths) - lengths
        flat = [token for row in rows for token in row]
        self.tokens = _grown(self.tokens, self._used + len(flat))
        self.tokens[self._used : self._used + len(flat)] = flat
        self._used += len(flat)

    def beside(self, tokens: NDArray[np.int32]) -> int:
        """Where these tokens stand in `tokens`, until something new is learnt."""
        self.tokens = _grown(self.tokens, self._used + len(tokens))
        self.tokens[self._used : self._used + len(tokens)] = tokens
        return self._used


def _grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    """The array with room for at least so many."""
    if size <= len(array):
        return array
    larger = np.zeros(max(size, 2 * len(array)), dtype=array.dtype)
    larger[: len(array)] = array
    return larger
