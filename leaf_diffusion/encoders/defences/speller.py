"""Spelling correction word by word, before tokenization: the baseline that a robust encoder has to beat."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from leaf_diffusion.encoders.base import Defence
from leaf_diffusion.text.words import load_words
from leaf_diffusion.weights.fingerprints import fingerprint

# a word and the marks inside it: "don't" is one word, digits or symbols inside a word make it a misspelling
_CHUNK = re.compile(r"\S+")
_EDGES = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)
_CORRECTABLE = re.compile(r"[^\W\d_]", re.UNICODE)


class Speller:
    """Replaces each word outside the dictionary by the dictionary word nearest to it.

    `words`: a dictionary, or a mapping from word to frequency. A word is corrected to the most frequent word one edit
    away (insert, delete, substitute or swap of neighbours), else, with `max_distance=2`, two edits away. Ties, and a
    dictionary without frequencies, go to a word of the same first letter, then to the shortest (short words are the
    common ones), then to the first in the alphabet. Everything else stays: spaces, punctuation at a word's edges, and
    words that are right, in their own case. Words of one letter and chunks without letters are left alone.
    """

    name = "speller"

    def __init__(self, words: Iterable[str] | Mapping[str, int], max_distance: int = 1) -> None:
        if max_distance not in (1, 2):
            raise ValueError(f"max_distance must be 1 or 2, got {max_distance}")
        counts = words if isinstance(words, Mapping) else dict.fromkeys(words, 1)
        self._frequency = {word.lower(): count for word, count in counts.items() if word}
        if not self._frequency:
            raise ValueError("a speller needs words: the dictionary is empty")
        self.max_distance = max_distance
        self._memo: dict[str, str] = {}
        letters = {letter for word in self._frequency for letter in word}
        self._letters = "".join(sorted(letters))
        listing = "\n".join(f"{word} {count}" for word, count in sorted(self._frequency.items()))
        self.fingerprint = fingerprint(f"speller {max_distance}\n{listing}")

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The corrected texts."""
        return [_CHUNK.sub(lambda match: self._chunk(match.group()), text) for text in texts]

    def correct(self, word: str) -> str:
        """The correction of one lower-case word, or the word itself where it is known or nothing is near."""
        if (known := self._memo.get(word)) is None:
            known = self._memo[word] = self._nearest(word)
        return known

    def _chunk(self, chunk: str) -> str:
        match = _EDGES.match(chunk)
        assert match is not None  # the pattern matches every string
        before, core, after = match.groups()
        if len(core) < 2 or not _CORRECTABLE.search(core):
            return chunk
        parts = re.split(r"([-/])", core)  # "black-and-whte": each part is a word of its own
        if len(parts) > 1 and all(len(part) > 1 for part in parts[::2]):
            fixed = "".join(self._cased(part) if i % 2 == 0 else part for i, part in enumerate(parts))
        else:
            fixed = self._cased(core)
        return before + fixed + after

    def _cased(self, word: str) -> str:
        lower = word.lower()
        if lower.endswith(("'s", "’s")) and lower[:-2] in self._frequency:
            return word
        fixed = self.correct(lower)
        if fixed == lower:
            return word
        return fixed.upper() if word.isupper() else fixed.capitalize() if word[0].isupper() else fixed

    def _nearest(self, word: str) -> str:
        if word in self._frequency:
            return word
        near = self._known(edits := _edits(word, self._letters))
        if not near and self.max_distance == 2:
            near = {other for edit in edits for other in self._known(_edits(edit, self._letters))}
        if not near:
            return word
        return min(near, key=lambda other: (-self._frequency[other], other[0] != word[0], len(other), other))

    def _known(self, words: set[str]) -> set[str]:
        return {word for word in words if len(word) > 1 and word in self._frequency}


def _edits(word: str, letters: str) -> set[str]:
    """Every string one insertion, deletion, substitution or swap of neighbours away."""
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    found = {a + b[1:] for a, b in cuts if b}
    found |= {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
    found |= {a + letter + b for a, b in cuts for letter in letters}
    return found | {a + letter + b[1:] for a, b in cuts if b for letter in letters}


def english_speller() -> Defence:
    """A `Speller` over the shipped English words (SCOWL), which carry no frequencies."""
    return Speller(load_words())
