"""A small language model of captions: how likely a word is behind another one, for choosing between corrections."""

from __future__ import annotations

import gzip
import math
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from leaf_diffusion.text.words import load_words
from leaf_diffusion.tokens.tokenizer import clip_tokenizer
from leaf_diffusion.weights.fingerprints import fingerprint

ARTICLES = frozenset(("a", "an", "the"))
JARGON = frozenset(("2d", "3d", "4k", "8k", "16k", "cgi", "dslr", "hd", "hdr", "sks", "uhd"))
"""What prompts say on purpose and dictionaries do not hold."""
NUMBER = "0"
"""The word that stands for every number."""
START, END = "<s>", "</s>"
_REMEMBERED = 1 << 18
"""Costs that are remembered: prompts of a service have words without end."""
DISCOUNT = 0.75
"""What is taken off the count of each pair for those never seen (absolute discounting)."""
NEW = 0.1
"""How much at least of a prompt's pairs is no captions' pair, however often the first word came."""
COARSER = 0.5
"""How much an article's share in a context has of that in the coarser one, however often that context came."""
_PIECE = re.compile(r"[a-z]+(?:'[a-z]+)*|\d+[a-z]*")
_HEAD = 20.0
"""Zipf's law flattened at its head: the share of the word of rank r is as 1 / (r + 20)."""
_ARTICLES = {"": 0.7, "a": 0.2, "the": 0.1}
"""How often which article stands before a word of which nothing is known."""
_RARE = 2e-7
"""Share of a dictionary word that CLIP's byte-pair encoding has no token for."""


class CaptionModel:
    """Word pairs of captions, smoothed by the words' own counts, and these by a general frequency.

    The general frequency is that of image captions on the web: the order of whole words in CLIP's byte-pair encoding. Articles
    are left out, so that the pair is of the words that mean something, and counted beside: which one stands between the two.
    `captions`: those that one finetunes on, say; of their words those count as known that come twice, or are in the
    dictionary or CLIP's encoding.
    """

    def __init__(self, captions: Iterable[str] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._before: Counter[str] = Counter()
        self._followers: Counter[str] = Counter()
        self._articles: dict[tuple[str, str], Counter[str]] = {}
        self._ranks, self._scale = _general()
        for caption in captions:
            self._count(caption)
        for before, _ in self._pairs:
            self._followers[before] += 1
        self._kinds, self._total = len(self.counts), self.counts.total()
        own = {w for w, n in self.counts.items() if (n > 1 or w in self._ranks) and len(w) > 1 and w != END}
        dictionary = (word for word in load_words() if len(word) > 1 or word in ("a", "i"))
        self.words = frozenset((*dictionary, *own, *JARGON, *ARTICLES))
        self._memo: dict[tuple[str, str], float] = {}
        self._article_memo: dict[tuple[str, str, str], float] = {}
        listing = "\n".join(f"{a} {b} {n}" for (a, b), n in sorted(self._pairs.items()))
        chosen = "\n".join(f"{a} {b} {sorted(n.items())}" for (a, b), n in sorted(self._articles.items()))
        self.fingerprint = fingerprint(f"captions 1\n{listing}\n{chosen}\n{' '.join(sorted(self.words))}")

    def _count(self, caption: str) -> None:
        before, article = START, ""
        for word in [*caption_words(caption), END]:
            if word in ARTICLES:
                article = "the" if word == "the" else "a"
                continue
            self.counts[word] += 1
            self._pairs[before, word] += 1
            self._before[before] += 1
            for key in _contexts(before, word):
                self._articles.setdefault(key, Counter())[article] += 1
            before, article = word, ""

    def cost(self, before: str, word: str) -> float:
        """-log of the probability of `word` behind `before` (`START` and `END` are words here)."""
        if (known := self._memo.get((before, word))) is None:
            if len(self._memo) > _REMEMBERED:
                self._memo.clear()
            share, n = self._share(word), self._before[before]
            if n:
                seen = max(self._pairs[before, word] - DISCOUNT, 0)
                share = NEW * share + (1 - NEW) * (seen + DISCOUNT * self._followers[before] * share) / n
            known = self._memo[before, word] = -math.log(share)
        return known

    def article_cost(self, article: str, before: str, word: str) -> float:
        """-log of the probability that `article` ("a", "the" or none, "") stands between the two."""
        key = article, before, word
        if (known := self._article_memo.get(key)) is None:
            if len(self._article_memo) > _REMEMBERED:
                self._article_memo.clear()
            share = _ARTICLES[article]
            for context in _contexts(before, word):  # each smoothed by the one before
                if (counts := self._articles.get(context)) is not None:
                    mine = (counts[article] + 3 * share) / (counts.total() + 3)
                    share = COARSER * share + (1 - COARSER) * mine
            known = self._article_memo[key] = -math.log(share)
        return known

    def names(self, word: str) -> bool:
        """Whether a word outside the dictionary is usual on the web: CLIP's encoding has a token for it."""
        return word in self._ranks

    def _share(self, word: str) -> float:
        if word == END:
            general = 0.1
        elif word == NUMBER:
            general = 3e-3
        else:
            rank = self._ranks.get(word)
            general = _RARE if rank is None else self._scale / (rank + _HEAD)
        if not self._total:
            return general
        return (self.counts[word] + self._kinds * general) / (self._total + self._kinds)


def _contexts(before: str, word: str) -> tuple[tuple[str, str], ...]:
    return ("", word), (before, ""), (before, word)


def caption_words(caption: str) -> list[str]:
    """The words of a caption in lower case, numbers as `NUMBER`, without signs."""
    return [NUMBER if piece.isdigit() else piece for piece in _PIECE.findall(caption.lower())]


@cache
def _general() -> tuple[dict[str, int], float]:
    """Rank of each whole word in CLIP's byte-pair encoding, most frequent first, and the scale of their shares."""
    first = 512  # before them the bytes, alone and at the end of a word
    found = {
        token.removesuffix("</w>"): i for token, i in clip_tokenizer().get_vocab().items() if token.endswith("</w>")
    }
    ranks = {word: i - first + 1 for word, i in found.items() if i >= first and word.isalpha() and word.isascii()}
    known = load_words()
    return ranks, 1 / sum(1 / (rank + _HEAD) for word, rank in ranks.items() if word in known)


def shipped_captions() -> list[str]:
    """Some thousand captions and prompts in everyday English, which were written for this."""
    packed = files("leaf_diffusion.encoders.defences").joinpath("data", "captions.txt.gz").read_bytes()
    return gzip.decompress(packed).decode("utf-8").splitlines()


@cache
def english_captions() -> CaptionModel:
    """The model of the shipped captions."""
    return CaptionModel(shipped_captions())
