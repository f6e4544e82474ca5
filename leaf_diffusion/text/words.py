"""What counts as an English word, and how a text is split into words."""

from __future__ import annotations

import gzip
import re
import unicodedata
from functools import cache
from importlib.resources import files

from rapidfuzz.distance import Hamming

_RUN = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_PIECES = re.compile(f"({_RUN.pattern})")


@cache
def load_words() -> frozenset[str]:
    """The shipped English words: SCOWL's american-english, size 50 (Debian wamerican 2020.12.07; licence beside the
    list).

    Lower case, plurals in, accents kept; possessives and single letters other than "a" and "i" out.
    """
    packed = files("leaf_diffusion.text").joinpath("data", "words.txt.gz").read_bytes()
    return frozenset(gzip.decompress(packed).decode("utf-8").split())


def split_words(text: str) -> tuple[str, ...]:
    """The words of ``text`` in order, dictionary or not: maximal runs of letters and inner apostrophes, lower-cased.

    Anything else (space, digit, hyphen, underscore, other punctuation) separates words: "well-known" is two, "b4ll"
    is "b" and "ll". A possessive counts as its noun ("dog's" is "dog"), a curly apostrophe as a straight one, and
    letters are compared in composed form (NFC), so an accent is the same however it was typed.
    """
    lowered = text.lower()
    if not lowered.isascii():
        lowered = unicodedata.normalize("NFC", lowered)
    return tuple(run.replace("\u2019", "'").removesuffix("'s") for run in _RUN.findall(lowered))


def pieces(text: str) -> list[str]:
    """``text`` cut up as it is written: what stands between words in the even places, words in the odd ones."""
    return _PIECES.split(text)


def word_distance(a: str, b: str) -> int:
    """Hamming distance in words: how many words of ``a`` are others in ``b``, by letters and case. Whatever else is not
    the same, between words or in their number, counts as well, place by place."""
    return int(Hamming.distance(pieces(a), pieces(b), pad=True))
