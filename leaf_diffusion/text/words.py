"""What counts as an English word, and how a text is split into words."""

from __future__ import annotations

import gzip
import re
import unicodedata
from functools import cache
from importlib.resources import files

_RUN = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")


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
