"""The dictionary words of a text, and those that one character makes of what stands around it, for all characters at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leaf_diffusion.text.words import split_words

TEXTS = 1 << 18
"""Chunks whose words are remembered."""
PLACES = 1 << 16
"""Places that are remembered, some 700 bytes each."""
SIGN, APOSTROPHE, DELETION = 26, 27, 28
CLASS = np.array(
    [ord(chr(c).lower()) - ord("a") if chr(c).isalpha() else APOSTROPHE if chr(c) == "'" else SIGN for c in range(128)]
)
"""In a text of ASCII capitals are read as small letters, and all else but an apostrophe separates words alike."""
_SMALL = "abcdefghijklmnopqrstuvwxyz"
_CHARACTERS = [*_SMALL, " ", "'", ""]
Words = tuple[str, ...]


class KnownWords:
    """The words of texts that a dictionary holds."""

    def __init__(self, words: frozenset[str]) -> None:
        self.words = words
        self._memo: dict[str, Words] = {}

    def __call__(self, text: str) -> Words:
        """The dictionary words of ``text``, in order."""
        if (found := self._memo.get(text)) is None:
            found = tuple(word for word in split_words(text) if word in self.words)
            if len(text) <= 64:  # long texts would fill memory and rarely come again
                if len(self._memo) > TEXTS:
                    self._memo.clear()
                self._memo[text] = found
        return found


class Outcomes(dict[tuple[str, str], tuple[tuple[Words, ...], NDArray[np.int64]]]):
    """For what stands left and right of a place in its whitespace chunks (ASCII in small letters): the distinct lists of words
    that come out, and which of them each class of characters makes.

    A letter makes one word of the letters around it, which is rarely one of the dictionary.
    """

    def __init__(self, known: KnownWords) -> None:
        super().__init__()
        self._known, self._words = known, known.words

    def __missing__(self, sides: tuple[str, str]) -> tuple[tuple[Words, ...], NDArray[np.int64]]:
        if len(self) > PLACES:
            self.clear()
        left, right = sides
        made = self._joined(left, right) if "'" in left or "'" in right else self._around(left, right)
        number: dict[Words, int] = {}
        which = np.array([number.setdefault(words, len(number)) for words in made])
        self[sides] = tuple(number), which
        return self[sides]

    def _joined(self, left: str, right: str) -> list[Words]:
        """Read letter by letter: an apostrophe may join what stands around it."""
        return [self._known(left + c + right) for c in _CHARACTERS]

    def _around(self, left: str, right: str) -> list[Words]:
        """The same without apostrophes: only the letters that touch the place can change."""
        head, tail = left[len(left.rstrip(_SMALL)) :], right[: len(right) - len(right.lstrip(_SMALL))]
        before, behind = self._known(left[: len(left) - len(head)]), self._known(right[len(tail) :])
        runs: list[Words] = [(head + c + tail,) for c in _SMALL]
        sign: Words = (head, tail)
        apostrophe = (head,) if tail == "s" else (f"{head}'{tail}",)
        runs += [sign, apostrophe if head and tail else sign, (head + tail,)]
        return [before + tuple(run for run in some if run in self._words) + behind for some in runs]
