"""Token rows of single edits of texts, by tokenizing only what an edit changes, all edits of many texts at once.

CLIP's byte-pair encoding never joins characters across whitespace, so an edit changes the tokens of the whitespace
chunks it touches and of no other. Within a chunk it never joins letters, digits and other characters with each other, so
a digit, say, put into a word leaves the tokens of the halves beside it. That holds for printable ASCII without HTML
entities and special tokens; for any other text, and for single candidates that might become such, the tokenizer reads
the whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from leaf_diffusion.text import Candidates
from leaf_diffusion.tokens.memo import NOTHING, TokenMemo
from leaf_diffusion.tokens.token_rows import Ints, Rows, TokenRows, present

Tokenize = Callable[[Sequence[str]], list[list[int]]]
_DIGIT, _OTHER = 2, 3
_KIND = np.array(
    [0 if c <= 32 else 1 if chr(c).isalpha() else _DIGIT if chr(c).isdigit() else _OTHER for c in range(128)]
)
"""0 space and deletion, 1 letters."""
_LOWER = np.array([ord(chr(c).lower()) for c in range(128)])
_HALVES = ("<|startof", "<|endo", "ftext|>")
"""An edit that makes a special token leaves one half of it as it was."""
_FINE = np.array([32 <= c < 127 for c in range(128)])


class ChunkTokenizer:
    """`tokenize` gives whole rows, begin ... end of text, uncut; `pieces` see `TokenMemo`."""

    def __init__(
        self,
        tokenize: Tokenize,
        context_length: int,
        pieces: Callable[[Sequence[str]], list[tuple[int, ...]]] | None = None,
    ) -> None:
        self._tokenize, self._context = tokenize, context_length
        self._memo = TokenMemo(tokenize, pieces)
        # a tokenizer with `pieces` knows no entities, and without a half of one no special token is an edit away
        self._fine = _FINE.copy()
        self._fine[[ord("&"), ord("|")]] = pieces is not None
        self._edges: list[int] | None = None

    def read(self, many: Sequence[Candidates]) -> TokenRows:
        """The rows of edits of several texts (and of empty lists), cut to the context with end-of-text kept."""
        counts = np.fromiter(map(len, many), np.int64, len(many))
        given = [each for each in many if len(each)]
        of_text = np.repeat(np.arange(len(given)), counts[counts > 0])
        bases, slots, codes = list[str](), list[Ints](), list[Ints]()
        for each in given:
            if each.base is None or each.slots is None or each.codes is None:
                raise ValueError("only edits of a base text have chunks")
            bases.append(each.base)
            slots.append(each.slots)
            codes.append(each.codes)
        if not given:
            return TokenRows(Rows.of([]), np.empty(0, np.int64), counts)
        plain = np.array([self._plain(base) for base in bases])
        slot, code = np.concatenate(slots), np.concatenate(codes)
        simple = plain[of_text] & ((code < 0) | self._fine[np.minimum(code, 127)])
        if simple.all():
            return TokenRows(*self._edits(bases, of_text, slot, code), counts)
        texts = [base if fine else "" for base, fine in zip(bases, plain.tolist(), strict=True)]
        rows, which = self._edits(texts, of_text[simple], slot[simple], code[simple])
        others = np.flatnonzero(~simple)
        first = np.cumsum(counts[counts > 0]) - counts[counts > 0]
        whole = self.whole([given[of_text[i]].text(int(i - first[of_text[i]])) for i in others.tolist()])
        everything = np.empty(len(slot), dtype=np.int64)
        everything[simple], everything[others] = which, len(rows) + np.arange(len(others))
        return TokenRows(Rows.joined([rows, whole]), everything, counts)

    def _plain(self, text: str) -> bool:
        """Printable ASCII in which no entity and no special token can be, after an edit neither."""
        if not text.isascii() or not text.isprintable():
            return False
        if self._memo.pieces is None:
            return "&" not in text and "|" not in text
        return "|" not in text or not any(half in text for half in _HALVES)

    def whole(self, texts: Sequence[str]) -> Rows:
        """The rows of texts, cut to the context."""
        rows = self._tokenize(texts) if texts else []
        return Rows.of([row if len(row) <= self._context else [*row[: self._context - 1], row[-1]] for row in rows])

    def _edits(self, bases: list[str], of_text: Ints, slot: Ints, code: Ints) -> tuple[Rows, Ints]:
        """The rows of edits that differ in more than capitals, and which of them each edit has."""
        self._memo.shrink()
        # the texts as one, each with a space behind it; a slot keeps its parity
        sizes = np.fromiter((len(base) + 1 for base in bases), np.int64, len(bases))
        begins = np.cumsum(sizes) - sizes
        text = "".join([base + " " for base in bases]).lower()
        slot = slot + 2 * begins[of_text]
        # CLIP lower-cases: half of the letters need no tokens of their own. Deletion is character 0 here
        distinct, which, _ = present(slot * 128 + _LOWER[np.maximum(code, 0)])
        slot, code = distinct >> 7, distinct & 127
        of_text = np.searchsorted(2 * begins, slot, side="right") - 1
        start, end = slot >> 1, (slot >> 1) + (slot & 1)
        letters = np.frombuffer(text.encode("ascii"), np.uint8)
        space = letters == 32
        low, high = _reach(space)
        first, last = low[start], high[end]
        parts = self._parts(text, letters, slot, code, first, last)
        # the texts' own tokens: those before and behind an edit's chunks
        own = self._memo.numbers(text.split())
        edges = np.flatnonzero(np.diff(space, prepend=True))  # the text ends with a space
        chunk_begins, chunk_ends = edges[::2], edges[1::2]
        lengths = np.concatenate([[0], np.cumsum(self._memo.lengths[own])])
        of_chunk = np.searchsorted(chunk_begins, begins)  # the first chunk of each text
        # two more tokens a text, its begin before its chunks and its end behind them
        tokens = np.empty(int(lengths[-1]) + 2 * len(bases), dtype=np.int32)
        text_ends = lengths[np.append(of_chunk[1:], len(own))] + 2 * np.arange(1, len(bases) + 1)
        text_begins = np.concatenate([[0], text_ends[:-1]])
        if self._edges is None:
            self._edges = self._tokenize([""])[0]
        inner = np.ones(len(tokens), dtype=bool)
        inner[text_begins] = inner[text_ends - 1] = False
        tokens[text_begins], tokens[text_ends - 1] = self._edges
        tokens[inner] = _pieces(self._memo.tokens, self._memo.starts[own], self._memo.lengths[own])
        left = lengths[np.searchsorted(chunk_ends, first, side="right")] + 2 * of_text + 1
        right = lengths[np.searchsorted(chunk_begins, last)] + 2 * of_text + 1
        beside = self._memo.beside(tokens)
        starts = np.column_stack([beside + text_begins[of_text], self._memo.starts[parts], beside + right])
        sizes = np.column_stack([left - text_begins[of_text], self._memo.lengths[parts], text_ends[of_text] - right])
        return self._cut(starts, sizes), which

    def _parts(self, text: str, letters: NDArray[np.uint8], slot: Ints, code: Ints, first: Ints, last: Ints) -> Ints:
        """[edits, 3] numbers of the memo that make up the changed chunks of each edit."""
        start, end = slot >> 1, (slot >> 1) + (slot & 1)
        kind = _KIND[code]
        apart = code == 32
        if self._memo.pieces is not None:
            # an apostrophe may join what stands behind it ("'s"), and signs join each other
            before = (start > first) & (_KIND[letters[start - 1]] == _OTHER)
            behind = (end < last) & (_KIND[letters[end]] == _OTHER)
            apart |= (kind == _DIGIT) | ((kind == _OTHER) & (code != ord("'")) & ~before & ~behind)
        parts = np.full((len(slot), 3), NOTHING, dtype=np.int64)
        one = np.flatnonzero(apart)
        if len(one):
            signs, of_sign, _ = present(code[one])
            parts[one, 1] = self._memo.numbers([chr(c).strip() for c in signs.tolist()])[of_sign]
            at, of_slot, sides = present(slot[one])
            sides = one[sides]
            halves = [text[a:b] for a, b in zip(first[sides].tolist(), start[sides].tolist(), strict=True)]
            halves += [text[a:b] for a, b in zip(end[sides].tolist(), last[sides].tolist(), strict=True)]
            numbers = self._memo.numbers(halves)
            parts[one, 0], parts[one, 2] = numbers[: len(at)][of_slot], numbers[len(at) :][of_slot]
        rest = np.flatnonzero(~apart)
        characters = [chr(c) if c else "" for c in range(128)]
        spans = (each[rest].tolist() for each in (first, start, code, end, last))
        parts[rest, 0] = self._memo.numbers(
            [text[a:b] + characters[c] + text[d:e] for a, b, c, d, e in zip(*spans, strict=True)]
        )
        return parts

    def _cut(self, starts: Ints, sizes: Ints) -> Rows:
        """Rows of several stretches of the memo's tokens each."""
        ends = np.cumsum(sizes, axis=1)
        long = np.flatnonzero(ends[:, -1] > self._context)
        if len(long):
            ends = np.minimum(ends, self._context)
            sizes = np.diff(ends, axis=1, prepend=0)
        flat = _pieces(self._memo.tokens, starts.ravel(), sizes.ravel())
        rows = Rows.of_flat(flat, ends[:, -1])
        if len(long) and self._edges is not None:
            rows.tokens[long, self._context - 1] = self._edges[1]
        return rows


def _reach(space: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """For each place, where the chunk that touches it begins, and where it ends."""
    places = np.arange(len(space))
    low = np.maximum.accumulate(np.where(space, places + 1, 0))
    high = np.minimum.accumulate(np.where(space, places, len(space))[::-1])[::-1]
    return np.concatenate([[0], low[:-1]]), high


def _pieces(source: NDArray[np.int32], starts: Ints, sizes: Ints) -> NDArray[np.int32]:
    """Stretches of `source`, one behind the other."""
    ends = np.cumsum(sizes)
    shift = np.repeat(starts - ends + sizes, sizes)
    return source[shift + np.arange(len(shift))]
