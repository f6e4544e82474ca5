"""Misspellings undone before the encoder reads them: the likeliest sentence of words near a prompt."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from string import ascii_lowercase, punctuation

from leaf_diffusion.encoders.defences.caption_model import ARTICLES, END, NUMBER, START, CaptionModel, english_captions
from leaf_diffusion.encoders.defences.visible import Visible
from leaf_diffusion.weights.fingerprints import fingerprint

EDIT, UNKNOWN, USUAL, NAME, COUNTED, TWICE, SIGN = 6.0, 30.0, 10.0, 3.0, 6.0, 12.0, 4.0
"""Costs, as -log of a probability, beside the word's own: an edit; a word outside the dictionary, one that CLIP's encoding
has a token for, such a one with a capital; one digit that counts no plural; two articles; a sign alone that writers do not
set so."""
LONGEST, MOST_CHUNKS = 40, 512
"""Characters of a chunk, and chunks of a prompt, up to which corrections are looked for: no encoder reads further."""
_PURPOSE = re.compile(r"(\([^()]*:(?:\d+(?:\.\d*)?|\.\d+)\)|<[^<>]+>|\[[^\[\]]*\])")
"""Weighted brackets, "<lora:name>", "[ ]": prompt syntax."""
_LETTERS = ascii_lowercase + "'"
_PLURALS = frozenset(("children", "feet", "fish", "geese", "men", "mice", "people", "sheep", "teeth", "women"))
_COMMAS, _STOPS = frozenset(',;:)"'), frozenset('.,;:!?)"')
"""Marks that end a chunk in ordinary writing, within a sentence and at its end."""
_WORDLESS = frozenset(("&", "-", "|", "+", "/"))
"""Signs that stand alone in ordinary writing."""
_SHORT = re.compile(r"['’](?:s|t|d|m|re|ve|ll)$")
"""An apostrophe in its place: "it's", "don't"."""
_VOWEL = re.compile(r"(?!uni(?!n|m)|use|eu|one\b|once)[aeiou]|hour|honest|heir|8")
_CHUNK = re.compile(r"\S+")
Words = tuple[str, ...]
_Ways = dict[tuple[str, str], tuple[float, Words]]


class Canonical:
    """Each prompt as the likeliest sentence of known words at its chunks' one edit at most, in lower case, without signs.

    A chunk (what stands between white space) is a known word, one edit (or swap of neighbours) away from one or two known
    words, or half of a word that a space has split; what nothing explains stays. The sentence taken is that of least cost: of
    a `CaptionModel`'s word pairs and articles, so much for each edit, more for an unknown word. A sign, a digit or a capital
    inside a word gives the place of the edit away, white space of two that of an article of one letter.

    What is meant is left alone: words of the model and of `keep`, prompt syntax (weighted brackets, "<lora:name>", "[ ]"),
    numbers, words with no known one near (names), and words with letters beyond ASCII.

    Source: noisy-channel correction (Kernighan et al., 1990); robust encodings of prompts (Jones et al., 2020).
    """

    name = "canonical"

    def __init__(self, model: CaptionModel | None = None, *, keep: Collection[str] = ()) -> None:
        self.model = model or english_captions()
        self._words = self.model.words | {word.lower() for word in keep}
        self._visible = Visible()
        self._fixes: dict[tuple[str, bool, bool], tuple[Words, ...]] = {}
        kept = " ".join(sorted(word.lower() for word in keep))
        self.fingerprint = fingerprint(f"canonical 1\n{kept}\n{self.model.fingerprint}")

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The canonical texts."""
        return [self._canonical(text) for text in self._visible(texts)]

    def _canonical(self, text: str) -> str:
        pieces = _PURPOSE.split(text)
        if len(pieces) == 1:
            return " ".join(self._sentence(text))
        rest = [pieces[0], *(piece.strip() for piece in pieces[1:])]  # of what is wide there nothing is missing
        found = [piece if i % 2 else " ".join(self._sentence(piece)) for i, piece in enumerate(rest)]
        return " ".join(filter(None, found))

    # -- the sentence ----------------------------------------------------------------------------------------------

    def _sentence(self, text: str) -> Words:
        """The words of least cost: the shortest way through the readings of all chunks."""
        chunks, wide = _chunks(text)
        if not chunks:
            return ()
        read = [self._read(chunk) for chunk in chunks]
        # for each place the cheapest way to each last word and the article behind it: its cost and its words
        ways: list[_Ways] = [{} for _ in range(len(chunks) + 1)]
        ways[0][START, ""] = 0.0, ()
        for i in range(len(chunks)):
            if i in wide:
                for (last, article), (cost, words) in list(ways[i].items()):
                    if not article:
                        self._extend(ways[i], (last, ""), cost, words, ("a",))
            arcs = self._arcs(chunks, read, i)
            for state, (cost, words) in ways[i].items():
                for length, more, extra in arcs:
                    self._extend(ways[i + length], state, cost + extra, words, more)
        model = self.model
        ends = ((total + model.cost(last, END), article, words) for (last, article), (total, words) in ways[-1].items())
        _, article, words = min(ends)
        return (*words, article) if article else words

    def _arcs(self, chunks: list[str], read: list[Words | None], i: int) -> list[tuple[int, Words, float]]:
        """Ways on from a chunk: (chunks taken, words, cost beside the words' own)."""
        chunk, known = chunks[i], read[i]
        following = read[i + 1] if i + 1 < len(chunks) else ()
        arcs = list[tuple[int, Words, float]]()
        if known is None:
            arcs.append((1, (chunk.lower(),), self._unknown(chunk, first=i == 0)))
            ends = i + 1 == len(chunks) or chunks[i + 1][0].isupper()
            if i < MOST_CHUNKS:
                arcs += [(1, words, EDIT) for words in self._near(chunk, i == 0, ends)]
        elif known == (NUMBER,) and len(chunk) == 1:
            counts = following is None or not following or following[-1].endswith("s") or following[-1] in _PLURALS
            arcs += [(1, (chunk,), 0.0)] if counts else [(1, (chunk,), COUNTED), (1, ("a",), EDIT)]
        elif not known:
            arcs.append((1, ("and",) if chunk == "&" else (), 0.0 if chunk in _WORDLESS else SIGN))
            arcs += [(1, ("a",), 0.0)] if len(chunk) == 1 else []
        else:
            arcs.append((1, (chunk.lower().strip(punctuation),) if known == (NUMBER,) else known, 0.0))
        if i + 1 < min(len(chunks), MOST_CHUNKS) and (known is None or following is None):
            arcs += [(2, words, EDIT) for words in self._joined(chunk, chunks[i + 1])]
        return arcs

    def _unknown(self, chunk: str, *, first: bool) -> float:
        if not self.model.names(chunk.lower().strip(punctuation)):
            return UNKNOWN
        return NAME if chunk[0].isupper() and not first else USUAL

    def _extend(self, ways: _Ways, state: tuple[str, str], cost: float, words: Words, more: Words) -> None:
        last, article = state
        for word in more:
            if word in ARTICLES:
                cost += TWICE if article else 0.0
                article = "the" if word == "the" else "a"
                continue
            read = NUMBER if word.isdigit() else word
            cost += self.model.cost(last, read) + self.model.article_cost(article, last, read)
            words = (*words, _agreeing(article, word), word) if article else (*words, word)
            last, article = read, ""
        if (last, article) not in ways or (cost, words) < ways[last, article]:
            ways[last, article] = cost, words

    # -- the chunks ------------------------------------------------------------------------------------------------

    def _read(self, chunk: str) -> Words | None:
        """The known words of a chunk as it stands, none for signs alone; None where it is no word."""
        core = chunk.lower().strip(punctuation)
        if not core:
            return ()
        if core in self._words:
            return (core,)
        if core.isdigit():
            return (NUMBER,)
        if core.endswith(("'s", "’s")) and core[:-2] in self._words:
            return (core,)
        parts = re.split(r"[-/]", core)
        return tuple(parts) if len(parts) > 1 and all(part in self._words for part in parts) else None

    def _near(self, chunk: str, first: bool, ends: bool) -> tuple[Words, ...]:
        """What one edit makes of a chunk that is no word. first, ends: whether it begins or ends a sentence."""
        key = chunk, first, ends
        if (found := self._fixes.get(key)) is None:
            if len(self._fixes) > 1 << 18:
                self._fixes.clear()
            found = self._fixes[key] = tuple(sorted(self._corrections(chunk, first, ends)))
        return found

    def _corrections(self, chunk: str, first: bool, ends: bool) -> set[Words]:
        found = set[Words]()
        if len(chunk) > LONGEST or not chunk.isascii():
            return found
        text = chunk.lower()
        for places, missing in _places(chunk, first, ends):
            for i in places:
                self._replaced(text[:i], text[i + 1 :], found)
            if missing:
                core = text.strip(punctuation)
                for i in range(len(core) + 1):
                    self._inserted(core[:i], core[i:], found)
                swaps = (core[:i] + core[i + 1] + core[i] + core[i + 2 :] for i in range(len(core) - 1))
                found.update((word,) for word in swaps if word in self._words)
            if found:
                break
        return found

    def _replaced(self, head: str, tail: str, found: set[Words]) -> None:
        """One character between the two was put in, or stands for a letter or a space."""
        head, tail = head.lstrip(punctuation), tail.rstrip(punctuation)
        if head + tail and (words := self._read(head + tail)) is not None:
            found.add(words)
        self._pair(head, tail, found)
        for letter in _LETTERS:
            if (word := head + letter + tail) in self._words:
                found.add((word,))

    def _inserted(self, head: str, tail: str, found: set[Words]) -> None:
        """A letter or a space between the two was left out."""
        self._pair(head, tail, found)
        for letter in _LETTERS:
            if (word := head + letter + tail) in self._words:
                found.add((word,))

    def _pair(self, head: str, tail: str, found: set[Words]) -> None:
        if (one := self._read(head)) and (other := self._read(tail)):
            found.add((*one, *other))

    def _joined(self, one: str, other: str) -> set[Words]:
        """The word that a space has split, or whose letter a space has replaced."""
        head, tail = one.lower().lstrip(punctuation), other.lower().rstrip(punctuation)
        return {(word,) for letter in ("", *_LETTERS) if (word := head + letter + tail) in self._words}


def _agreeing(article: str, word: str) -> str:
    """ "a" as "an" before a vowel that is heard."""
    return "an" if article == "a" and _VOWEL.match(word) else article


def _chunks(text: str) -> tuple[list[str], set[int]]:
    """What stands between white space, and before which of them there is more than one space (or any, before the first)."""
    chunks, wide, end = list[str](), set[int](), -1
    for found in _CHUNK.finditer(text):
        if found.start() > end + 1:
            wide.add(len(chunks))
        chunks.append(found.group())
        end = found.end()
    return chunks, wide


def _places(chunk: str, first: bool, ends: bool) -> list[tuple[list[int], bool]]:
    """Where one edit can be, the most telling places first: (characters that may be wrong, whether one may be missing)."""
    start, end = len(chunk) - len(chunk.lstrip(punctuation)), len(chunk.rstrip(punctuation))
    inner = list(range(start, end))
    odd = [i for i in inner if not (chunk[i].isalpha() or chunk[i] == "-" or _SHORT.match(chunk[i:end].lower()))]
    edges = [*range(start), *range(end, len(chunk))]
    usual = all(i >= end and chunk[i] in (_STOPS if ends else _COMMAS) for i in edges)
    if odd:  # behind a mark that ends a sentence the last character is the odd one, unless it is an article
        last = [end - 1] if odd == [end - 2] and chunk[end - 2] in _STOPS and chunk[end - 1] not in "aA" else []
        return [([*odd, *last], False)]
    if edges and not usual:
        return [(edges, False), (inner, True)]
    capitals = [i for i in inner if chunk[i].isupper()]
    mixed = [i for i in capitals if i > start] if len(capitals) == 1 or 2 * len(capitals) < len(inner) else []
    if mixed:
        return [([start, *mixed] if mixed == [start + 1] else mixed, False), (inner, True)]
    if capitals == [start] and not first and len(inner) > 1 and not edges:
        return [([start], False), (inner, True)]
    return [([*inner, *edges], True)]
