"""Everyday and malicious noise: the slips of fingers and scanners, look-alike letters and what is not seen, k of them.

Drawn at random it is what happens by itself; with ``worst`` each slip is the most harmful one, which is what somebody does
who hides an attack among slips.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from leaf_diffusion.attacks.base import Attack, Outcome, Problem
from leaf_diffusion.attacks.search import Iterates
from leaf_diffusion.text import DELETE, Candidates

if TYPE_CHECKING:
    pass

KEYS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")
"""Rows of a US keyboard, each half a key to the right of the one above."""
SCANNED = (
    ("m", "rn"), ("rn", "m"), ("w", "vv"), ("vv", "w"), ("d", "cl"), ("cl", "d"), ("o", "0"), ("0", "o"), ("l", "1"),
    ("1", "l"), ("i", "l"), ("l", "i"), ("i", "1"), ("s", "5"), ("5", "s"), ("b", "6"), ("6", "b"), ("b", "h"), ("h", "b"),
    ("e", "c"), ("c", "e"), ("g", "9"), ("9", "g"), ("z", "2"), ("2", "z"), ("t", "f"), ("f", "t"), ("u", "v"), ("v", "u"),
    ("n", "ri"), ("ri", "n"), ("a", "o"), ("o", "a"), ("q", "g"), ("y", "v"),
)  # fmt: skip
"""What optical character recognition takes for what."""
LOOKALIKES = dict(
    zip(
        "acdeghijklnopqsuvwxyABCEHIJKMNOPSTXYZ",
        "асԁеɡһіјκӏոорԛѕսνԝхуАВСЕНІЈКМΝОРЅТХΥΖ",
        strict=True,
    )
)
"""Latin letters and characters of Cyrillic, Greek, Armenian and phonetic script that look the same (Unicode UTS #39)."""
UNSEEN = "\u00ad\u034f\u180e\u200b\u200c\u200d\u2060\u2062\ufe0f\ufeff"
"""Characters without a shape: soft hyphen, joiners, zero-width spaces, a variation selector, a byte-order mark."""
FROM_RIGHT, AS_BEFORE = "\u202e", "\u202c"
"""What stands between these two is shown from right to left, whatever its letters."""
WORST = "worst-"
"""Before the name of a kind of noise: searched for its worst slips."""
MARKS = "!\"'(),-.:;?`~"


def _beside() -> dict[str, str]:
    """Each key's neighbours: beside it, above it and below it."""
    places = {key: (x + y / 2, y) for y, row in enumerate(KEYS) for x, key in enumerate(row)}
    return {
        key: "".join(other for other, (a, b) in places.items() if other != key and abs(a - x) <= 1 and abs(b - y) <= 1)
        for key, (x, y) in places.items()
    }


BESIDE = _beside()


@dataclass(frozen=True, kw_only=True)
class Noise(Attack):
    """``k`` slips of one kind, each drawn at random from the allowed ones; with ``worst`` each is the one that scores
    highest (greedily, like Charmer, but over this kind of slip alone).

    A prompt in which no such slip is possible stays as it is.
    """

    worst: bool = False
    """Search for the most harmful slip."""

    @property
    def label(self) -> str:
        return WORST + self.name if self.worst else self.name

    @abstractmethod
    def slips(self, text: str) -> Candidates:
        """Every text that one slip makes of ``text``."""

    def run(self, problem: Problem) -> list[Outcome]:
        texts, state = list(problem.prompts), Iterates(problem.prompts, problem.score) if self.worst else None
        for done in range(1, problem.k + 1):
            made = {i: self.slips(text) for i, text in enumerate(texts if state is None else state.texts)}
            if state is None:
                for i, slips in made.items():
                    texts[i] = _any(texts[i], slips, problem.allowed(i, texts[i], slips), problem.rngs[i])
            else:
                active = [i for i in made if not state.finished[i]]
                state.advance({i: made[i][problem.allowed(i, state.texts[i], made[i])] for i in active})
            problem.tell(done * len(problem.prompts), problem.k * len(problem.prompts))
        return list(texts if state is None else state.texts)


def _any(text: str, slips: Candidates, mask: np.ndarray, rng: np.random.Generator) -> str:
    hits = np.flatnonzero(mask)
    return slips.text(int(rng.choice(hits))) if len(hits) else text


def _substitutes(text: str, table: dict[str, str]) -> Candidates:
    """Each character replaced by each of its entry; upper case stays upper case where the table has none of its own."""
    slots, characters = list[int](), list[str]()
    for i, letter in enumerate(text):
        lower = table.get(letter.lower(), "")
        entry = table.get(letter, lower.upper() if letter.isupper() else lower)
        slots += [2 * i + 1] * len(entry)
        characters += entry
    return Candidates.edits(text, slots, characters)


@dataclass(frozen=True, kw_only=True)
class Keyboard(Noise):
    """A key beside the right one (US layout)."""

    name: ClassVar[str] = "keyboard"

    def slips(self, text: str) -> Candidates:
        return _substitutes(text, BESIDE)


@dataclass(frozen=True, kw_only=True)
class Scanner(Noise):
    """What optical character recognition confuses; "rn" for "m" counts two in Levenshtein distance."""

    name: ClassVar[str] = "ocr"
    distance_per_edit: ClassVar[int] = 2

    def slips(self, text: str) -> Candidates:
        found = [
            text[:at] + read + text[at + len(written) :]
            for at in range(len(text))
            for written, read in SCANNED
            if text[at : at + len(written)].lower() == written
        ]
        return Candidates.from_texts(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True)
class SwappedLetters(Noise):
    """Two neighbouring letters of a word in the wrong order: one edit of Damerau, two of Levenshtein."""

    name: ClassVar[str] = "swapped-letters"
    distance_per_edit: ClassVar[int] = 2

    def slips(self, text: str) -> Candidates:
        pairs = [i for i in range(len(text) - 1) if text[i] != text[i + 1] and text[i : i + 2].isalnum()]
        return Candidates.from_texts([text[:i] + text[i + 1] + text[i] + text[i + 2 :] for i in pairs])


@dataclass(frozen=True, kw_only=True)
class MissingSpaces(Noise):
    """A space left out."""

    name: ClassVar[str] = "missing-spaces"

    def slips(self, text: str) -> Candidates:
        slots = [2 * i + 1 for i, letter in enumerate(text) if letter == " "]
        return Candidates.edits(text, slots, [DELETE] * len(slots))


@dataclass(frozen=True, kw_only=True)
class Homoglyphs(Noise):
    """A letter replaced by one of another script that looks the same."""

    name: ClassVar[str] = "homoglyphs"

    def slips(self, text: str) -> Candidates:
        slots = [2 * i + 1 for i, letter in enumerate(text) if letter in LOOKALIKES]
        return Candidates.edits(text, slots, [LOOKALIKES[text[slot // 2]] for slot in slots])


@dataclass(frozen=True, kw_only=True)
class Punctuation(Noise):
    """A punctuation mark put in, taken out, or written for another one; letters and spaces stay."""

    name: ClassVar[str] = "punctuation"

    def slips(self, text: str) -> Candidates:
        edits = [(2 * i, mark) for i in range(len(text) + 1) for mark in MARKS if text[i - 1 : i] != mark]
        for i, letter in enumerate(text):
            if letter in MARKS:
                edits += [(2 * i + 1, mark) for mark in (*MARKS, DELETE) if mark != letter]
        return Candidates.edits(text, [slot for slot, _ in edits], [mark for _, mark in edits])


@dataclass(frozen=True, kw_only=True)
class Invisible(Noise):
    """A character that is not seen, anywhere (Boucher et al., "Bad Characters", 2022)."""

    name: ClassVar[str] = "invisible"

    def slips(self, text: str) -> Candidates:
        slots = [2 * i for i in range(len(text) + 1) for _ in UNSEEN]
        return Candidates.edits(text, slots, list(UNSEEN) * (len(text) + 1))


@dataclass(frozen=True, kw_only=True)
class Reordered(Noise):
    """Two neighbouring letters of a word in the wrong order, between marks that show them in the right one (Boucher et al.,
    "Bad Characters", 2022): four of Levenshtein."""

    name: ClassVar[str] = "reordered"
    distance_per_edit: ClassVar[int] = 4

    def slips(self, text: str) -> Candidates:
        pairs = [i for i in range(len(text) - 1) if text[i] != text[i + 1] and text[i : i + 2].isalnum()]
        swapped = [(i, f"{FROM_RIGHT}{text[i + 1]}{text[i]}{AS_BEFORE}") for i in pairs]
        return Candidates.from_texts([text[:i] + pair + text[i + 2 :] for i, pair in swapped])
