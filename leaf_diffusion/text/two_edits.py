"""Every text two edits away, each once and none remembered: what an exact search over two edits goes through."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rapidfuzz.distance import Levenshtein, Prefix

from leaf_diffusion.text.edits import ALPHABET, Candidates, neighbours, present


def two_edits(text: str, alphabet: str = ALPHABET) -> Iterator[Candidates]:
    """Every distinct text at Levenshtein distance 2 over ``alphabet`` (and deletion), as edits of the texts at distance 1.

    There are about half the square of the number at distance 1. A text is listed where its first edit from the left leads
    (`_first_edit`), so no list of what was seen is kept, however many there are.
    """
    once = neighbours(text, alphabet)
    for i in range(len(once)):
        middle = once.text(i)
        twice = _from(neighbours(middle, alphabet), int(once.slots[i]) // 2) if once.slots is not None else once
        own = [_first_edit(text, other, alphabet) == middle for other in twice.texts()]
        yield twice[np.array(own, dtype=bool)]


def _from(edits: Candidates, start: int) -> Candidates:
    """The edits whose text agrees with the base up to ``start``: what is left of a first edit there belongs to another."""
    base, slots, codes = edits.base, edits.slots, edits.codes
    if base is None or slots is None or codes is None:
        raise TypeError("only edits of a base text have places")
    characters = np.append(present(base)[1::2], -2)
    at = slots // 2
    # an edit is listed at the start of a run of equal characters, and shows at its end
    put = np.where(codes < 0, characters[at], codes)
    return edits[(at >= start) | (put == characters[at + slots % 2])]


def _first_edit(text: str, other: str, alphabet: str) -> str | None:
    """The text after the first of two edits that make ``other`` of ``text``; None where one edit or none makes it.

    Edits can be told so that they spare the common beginning. The first that does not substitutes, deletes or inserts just
    behind it; of these, in this order, the first is taken that leaves a single edit.
    """
    if Levenshtein.distance(text, other, score_cutoff=1) < 2:
        return None
    start = int(Prefix.similarity(text, other))
    new, rest = other[start : start + 1], text[start:]
    fits = bool(new) and new in alphabet
    for middle in (new + rest[1:] if fits and rest else None, rest[1:] if rest else None, new + rest if fits else None):
        if middle is not None and _one_edit(text[:start] + middle, other, alphabet):
            return text[:start] + middle
    return None


def _one_edit(text: str, other: str, alphabet: str) -> bool:
    """Whether a single edit over ``alphabet`` makes ``other`` of ``text``, two different texts."""
    if Levenshtein.distance(text, other, score_cutoff=1) > 1:
        return False
    return len(other) < len(text) or other[int(Prefix.similarity(text, other))] in alphabet
