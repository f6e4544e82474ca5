"""Token rows of single edits of one text, by tokenizing only what an edit changes.

CLIP's byte-pair encoding never joins characters across whitespace, so an edit changes the tokens of the whitespace
chunks it touches and of no other. That holds for printable ASCII without HTML entities and special tokens; for any
other text, and for single candidates that might become such, the tokenizer reads the whole text.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

from leaf_diffusion.text import Candidates

Row = tuple[int, ...]
Tokenize = Callable[[Sequence[str]], list[list[int]]]
_CHUNK = re.compile("[^ ]+")
MEMO = 1 << 18
"""Chunks that are remembered, some 100 bytes each."""


class ChunkTokenizer:
    """`tokenize` gives whole rows, begin ... end of text, uncut."""

    def __init__(self, tokenize: Tokenize, context_length: int) -> None:
        self._tokenize, self._context = tokenize, context_length
        self._memo: dict[str, Row] = {}
        self._ends: Row | None = None

    def rows(self, candidates: Candidates) -> list[Row]:
        """The rows of edits of a base text, cut to the context with end-of-text kept."""
        base, slots, characters = candidates.base, candidates.slots, candidates.characters
        if base is None or slots is None or characters is None:
            raise ValueError("only edits of a base text have chunks")
        if not _plain(base):
            return self._whole(candidates.texts())
        low, high = _reach(base)
        windows, others = list[tuple[int, int, str]](), list[int]()
        for i, (slot, character) in enumerate(zip(slots.tolist(), characters, strict=True)):
            start, end = slot // 2, slot // 2 + slot % 2
            first, last = low[start], high[end]
            if character and not _plain(character):
                others.append(i)
            # CLIP lower-cases: half of the letters need no tokens of their own
            windows.append((first, last, (base[first:start] + character + base[end:last]).lower()))
        chunks = [(match.start(), match.end()) for match in _CHUNK.finditer(base)]
        self._learn([text for _, _, text in windows] + [base[start:end].lower() for start, end in chunks])
        if self._ends is None:  # begin and end of text, which every row has
            self._ends = tuple(self._tokenize([""])[0])
        begin, end_of_text = self._ends
        own = [self._memo[base[start:end].lower()] for start, end in chunks]
        tokens = tuple(token for chunk in own for token in chunk)
        counts = [0, *accumulate(map(len, own))]
        starts, ends = [start for start, _ in chunks], [end for _, end in chunks]
        made: dict[tuple[int, int, str], Row] = {}
        for window in windows:
            if window not in made:
                first, last, text = window
                left, right = counts[bisect_right(ends, first)], counts[bisect_left(starts, last)]
                made[window] = self._cut((begin, *tokens[:left], *self._memo[text], *tokens[right:], end_of_text))
        rows = [made[window] for window in windows]
        for i, row in zip(others, self._whole([candidates.text(i) for i in others]), strict=True):
            rows[i] = row
        return rows

    def _learn(self, texts: list[str]) -> None:
        if len(self._memo) > MEMO:
            self._memo.clear()
        unknown = [text for text in dict.fromkeys(texts) if text not in self._memo]
        for text, row in zip(unknown, self._tokenize(unknown) if unknown else [], strict=True):
            self._memo[text] = tuple(row[1:-1])

    def _whole(self, texts: list[str]) -> list[Row]:
        return [self._cut(tuple(row)) for row in self._tokenize(texts)] if texts else []

    def _cut(self, row: Row) -> Row:
        return row if len(row) <= self._context else (*row[: self._context - 1], row[-1])


def _plain(text: str) -> bool:
    """Printable ASCII in which no entity and no special token can be."""
    return text.isascii() and text.isprintable() and "&" not in text and "|" not in text


def _reach(base: str) -> tuple[list[int], list[int]]:
    """For each position, where the chunk that touches it begins, and where it ends."""
    low, high = list(range(len(base) + 1)), list(range(len(base) + 1))
    for i in range(1, len(base) + 1):
        low[i] = i if base[i - 1] == " " else low[i - 1]
    for i in range(len(base) - 1, -1, -1):
        high[i] = i if base[i] == " " else high[i + 1]
    return low, high
