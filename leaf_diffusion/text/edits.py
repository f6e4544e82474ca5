"""The Levenshtein edit space of a sentence: slots, characters, neighbours, samples.

A sentence S of |S| code points has 2|S|+1 slots: its gaps (even slots, where a character can be inserted) interleaved
with its characters (odd slots, which can be substituted or deleted). One edit is a pair (slot, character). Paper:
section 3, after Charmer (Abad Rocamora et al., ICML 2024). Everything counts code points, so any script can be
edited.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

ALPHABET: str = "".join(chr(code) for code in range(32, 127))
"""The 95 printable ASCII characters; with ``DELETE`` these are the paper's 96 entries."""

DELETE: str = ""
"""The empty character: put in a character's slot it deletes that character."""
_DELETE = -1


def n_slots(text: str) -> int:
    """Number of edit slots of ``text``: 2|S|+1."""
    return 2 * len(text) + 1


def apply_edit(text: str, slot: int, character: str) -> str:
    """Put ``character`` into ``slot`` of ``text``.

    Slot ``2i`` is the gap before character ``i`` (insert; ``DELETE`` changes nothing there), slot ``2i+1`` is
    character ``i`` itself (substitute, or delete with ``DELETE``). ValueError for a slot outside the text or more
    than one code point.
    """
    if not 0 <= slot < n_slots(text):
        raise ValueError(f"slot {slot} is outside 0..{n_slots(text) - 1}, the slots of {text!r}")
    if len(character) > 1:
        raise ValueError(f"an edit places one character or DELETE, got {character!r}")
    start = slot // 2
    return text[:start] + character + text[start + slot % 2 :]


def distance(a: str, b: str) -> int:
    """Levenshtein distance in code points (insert, delete, substitute cost 1 each)."""
    return int(Levenshtein.distance(a, b))


class Candidates:
    """An immutable list of candidate inputs for one prompt, in one of four forms: edits of a base text, texts, token
    rows, or several such lists behind each other (`parts`).

    The edit form is what attacks use: it tells a scorer and a constraint *where* the candidates differ. An empty list
    means "this prompt is finished".
    """

    __slots__ = ("_base", "_codes", "_parts", "_rows", "_slots", "_texts")

    def __init__(
        self,
        *,
        base: str | None = None,
        slots: NDArray[np.int64] | None = None,
        codes: NDArray[np.int64] | None = None,
        texts: NDArray[np.object_] | None = None,
        rows: NDArray[np.object_] | None = None,
        parts: tuple[Candidates, ...] = (),
    ) -> None:
        """Internal; use ``edits``, ``from_texts``, ``from_tokens``, ``joined`` or ``none``."""
        self._base, self._slots, self._codes, self._texts, self._rows = base, slots, codes, texts, rows
        self._parts = parts
        for array in (slots, codes, texts, rows):
            if array is not None:
                array.setflags(write=False)

    @classmethod
    def edits(
        cls,
        base: str,
        slots: Sequence[int] | NDArray[np.int64],
        characters: Sequence[str] | NDArray[np.object_] | NDArray[np.int64],
    ) -> Candidates:
        """Single edits of ``base``: candidate ``i`` is ``apply_edit(base, slots[i], characters[i])``.

        Characters may be given as code points (int64, -1 for ``DELETE``).
        """
        slot_array = _checked(base, slots)
        if len(slot_array) != len(characters):
            raise ValueError(f"{len(slot_array)} slots but {len(characters)} characters: give one character a slot")
        if isinstance(characters, np.ndarray) and characters.dtype == np.int64:
            return cls(base=base, slots=slot_array, codes=np.array(characters, dtype=np.int64))
        letters: list[str] = list(characters)
        long = next((c for c in letters if len(c) > 1), None)
        if long is not None:
            raise ValueError(f"an edit places one character or DELETE, got {long!r}")
        return cls(base=base, slots=slot_array, codes=_codes(letters))

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> Candidates:
        """Whole texts."""
        if isinstance(texts, str):
            raise TypeError("from_texts takes a list of texts, got one string")
        return cls(texts=_objects(list(texts)))

    @classmethod
    def from_tokens(cls, rows: Iterable[Sequence[int]]) -> Candidates:
        """Token rows (begin ... end of text, not padded), for attacks on tokens."""
        return cls(rows=_objects([tuple(int(token) for token in row) for row in rows]))

    @classmethod
    def joined(cls, parts: Sequence[Candidates]) -> Candidates:
        """The candidates of all lists, one list behind the other: edits of several texts, say."""
        return parts[0] if len(parts) == 1 else cls(parts=tuple(part for each in parts for part in each.parts))

    @property
    def parts(self) -> tuple[Candidates, ...]:
        """The lists that were joined; of a list of one form itself alone."""
        return self._parts or (self,)

    @classmethod
    def none(cls) -> Candidates:
        """No candidates: this prompt is finished."""
        return cls.from_texts([])

    @property
    def base(self) -> str | None:
        """The text that was edited (None unless edits)."""
        return self._base

    @property
    def slots(self) -> NDArray[np.int64] | None:
        """int64 [n], read-only (None unless edits)."""
        return self._slots

    @property
    def characters(self) -> NDArray[np.object_] | None:
        """Object array [n] of str, one code point or ``DELETE`` each, read-only (None unless edits)."""
        if self._codes is None:
            return None
        characters = _objects([chr(code) if code >= 0 else DELETE for code in self._codes.tolist()])
        characters.setflags(write=False)
        return characters

    @property
    def codes(self) -> NDArray[np.int64] | None:
        """int64 [n], read-only: the characters' code points, -1 for ``DELETE`` (None unless edits)."""
        return self._codes

    @property
    def token_rows(self) -> list[list[int]] | None:
        """The token rows (None unless built from tokens)."""
        return None if self._rows is None else [list(row) for row in self._rows]

    def text(self, i: int) -> str:
        """Text of candidate ``i``; ValueError for token rows."""
        if self._parts:
            for part in self._parts:
                if i < len(part):
                    return part.text(i)
                i -= len(part)
            raise IndexError("there is no such candidate")
        if self._texts is not None:
            return str(self._texts[i])
        if self._base is None or self._slots is None or self._codes is None:
            raise ValueError("these candidates are token rows and have no text: use token_rows")
        return apply_edit(self._base, int(self._slots[i]), chr(self._codes[i]) if self._codes[i] >= 0 else DELETE)

    def texts(self) -> list[str]:
        """All texts; ValueError for token rows."""
        if self._parts:
            return [text for part in self._parts for text in part.texts()]
        if self._texts is not None:
            return list(self._texts)
        base, characters = self._base, self.characters
        if base is None or self._slots is None or characters is None:
            raise ValueError("these candidates are token rows and have no text: use token_rows")
        starts, ends = self._slots // 2, self._slots // 2 + self._slots % 2
        return [base[:s] + c + base[e:] for s, e, c in zip(starts.tolist(), ends.tolist(), characters, strict=True)]

    def __len__(self) -> int:
        if self._parts:
            return sum(map(len, self._parts))
        for array in (self._slots, self._texts, self._rows):
            if array is not None:
                return len(array)
        return 0

    def __getitem__(self, index: Any) -> Candidates:
        """The sub-list that an index array, a boolean mask or a slice selects (a single text is ``text(i)``)."""
        if not isinstance(index, np.ndarray | slice):
            if isinstance(index, SupportsIndex):
                raise TypeError("index candidates with an array, a mask or a slice; one text is text(i)")
            index = np.asarray(index)
        if isinstance(index, np.ndarray) and index.size == 0 and index.dtype != np.bool_:
            index = index.astype(np.int64)
        if self._parts:
            return self._chosen(np.arange(len(self))[index])

        def pick(array: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if array is None else array[index]

        return Candidates(
            base=self._base,
            slots=pick(self._slots),
            codes=pick(self._codes),
            texts=pick(self._texts),
            rows=pick(self._rows),
        )

    def _chosen(self, numbers: NDArray[np.int64]) -> Candidates:
        """Some of joined lists, in the order of their numbers, which has to be that of the lists."""
        ends = np.cumsum([len(part) for part in self._parts])
        of = np.searchsorted(ends, numbers, side="right")
        if (np.diff(of) < 0).any():
            raise ValueError("joined candidates are chosen in the order in which they stand")
        starts = ends - [len(part) for part in self._parts]
        return Candidates.joined([part[numbers[of == i] - starts[i]] for i, part in enumerate(self._parts)])

    def __repr__(self) -> str:
        if self._parts:
            return f"Candidates.joined({list(self._parts)})"
        form = "token rows" if self._rows is not None else "texts" if self._base is None else f"edits of {self._base!r}"
        return f"Candidates({len(self)} {form})"


def present(text: str) -> NDArray[np.int64]:
    """Code point of what stands in each slot: the characters, -1 in the gaps."""
    here = np.full(n_slots(text), _DELETE)
    here[1::2] = _codes(text)
    return here


def neighbours(text: str, alphabet: str = ALPHABET) -> Candidates:
    """Every distinct text at distance 1 over ``alphabet`` (and deletion), each once; ``text`` itself is left out.

    Equal edits (inserting an ``e`` before or behind an ``e``, deleting either ``o`` of ``oo``) are listed at their
    lowest slot.
    """
    here = present(text)
    before = np.roll(here, 1)  # for a gap: the character before it
    kept = _letters(alphabet) != np.where(here < 0, before, here)[:, None]
    # deletion: nothing in a gap, and of equal neighbours the first
    kept[:, -1] = (here >= 0) & (here != np.roll(here, 2))
    return _placed(text, np.arange(n_slots(text)), kept, alphabet)


def slot_edits(text: str, slots: Iterable[int], alphabet: str = ALPHABET) -> Candidates:
    """All of ``alphabet`` and ``DELETE`` in each of ``slots``, edits that change nothing left out.

    Edits in different slots can give equal texts (an ``e`` before or behind an ``e``): each stays in its slot.
    """
    chosen = _checked(text, list(slots))
    here = present(text)
    return _placed(text, chosen, _letters(alphabet) != here[chosen, None], alphabet)


def random_edits(text: str, n: int, rng: np.random.Generator, alphabet: str = ALPHABET) -> Candidates:
    """``n`` independent random edits that change the text: a uniform slot, then a uniform character of ``alphabet``
    and deletion.

    ValueError where no edit exists (an empty text and an empty alphabet).
    """
    letters = _letters(alphabet)
    if len(letters) == 1 and not text:
        raise ValueError("an empty text has no edit over an empty alphabet")
    here = present(text)
    slots = rng.integers(n_slots(text), size=n)
    choice = rng.integers(len(letters), size=n)
    while (unchanged := np.flatnonzero(letters[choice] == here[slots])).size:
        slots[unchanged] = rng.integers(n_slots(text), size=unchanged.size)
        choice[unchanged] = rng.integers(len(letters), size=unchanged.size)
    return Candidates(base=text, slots=slots, codes=letters[choice])


def _checked(text: str, slots: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """The slots as an array of its own; ValueError where one is outside the text."""
    array = np.array(slots, dtype=np.int64).reshape(-1)
    wrong = array.view(np.uint64) >= n_slots(text)  # a negative one is huge then
    if wrong.any():
        raise ValueError(f"slot {array[wrong][0]} is outside 0..{n_slots(text) - 1}, the slots of {text!r}")
    return array


def _placed(text: str, slots: NDArray[np.int64], kept: NDArray[np.bool_], alphabet: str) -> Candidates:
    """The edits [slots, letters] that are kept, slot by slot."""
    row, letter = np.nonzero(kept)
    return Candidates(base=text, slots=slots[row], codes=_letters(alphabet)[letter])


@lru_cache(maxsize=64)
def _letters(alphabet: str) -> NDArray[np.int64]:
    """Code points of the distinct characters, then deletion."""
    letters = np.append(_codes("".join(dict.fromkeys(alphabet))), _DELETE)
    letters.setflags(write=False)
    return letters


def _codes(characters: Sequence[str]) -> NDArray[np.int64]:
    """Code points of characters; -1 for ``DELETE``."""
    if isinstance(characters, str):
        return np.frombuffer(characters.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    return np.fromiter((ord(c) if c else _DELETE for c in characters), np.int64, len(characters))


def _objects(values: Sequence[Any] | NDArray[np.object_]) -> NDArray[np.object_]:
    """A one-dimensional object array (numpy's own string arrays drop a trailing NUL)."""
    array = np.empty(len(values), dtype=object)
    if all(isinstance(value, str) for value in values):
        array[:] = values
    else:  # numpy would spread sequences over dimensions
        for i, value in enumerate(values):
            array[i] = value
    return array
