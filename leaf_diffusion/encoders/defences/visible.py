"""What is not seen taken out of a prompt, and what is shown in another order put into it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from leaf_diffusion.text.decoding import shows
from leaf_diffusion.weights.fingerprints import fingerprint

_TURNED = re.compile("\u202e([^\u202a-\u202e\u2066-\u2069]*)\u202c")
"""A stretch that is shown from right to left, without another inside."""
_JOINERS = frozenset("\u200c\u200d\ufe0e\ufe0f")
LATIN = 0x036F
"""The last of the Latin letters and of the marks that stand on them."""


class Visible:
    """Reads what a person sees: stretches that marks of direction turn round are in the order in which they are shown, and
    characters without a shape are left out. Joiners and variation selectors that belong to how a word or an emoji is
    written, behind a letter that is not Latin or behind a symbol, stay."""

    name = "visible"
    fingerprint = fingerprint("visible 1")

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The texts as they are seen."""
        return [self._seen(text) for text in texts]

    @staticmethod
    def _seen(text: str) -> str:
        if text.isascii() and text.isprintable():
            return text
        turned = 1
        while turned:  # the inner ones first
            text, turned = _TURNED.subn(lambda match: match.group(1)[::-1], text)
        kept = list[str]()
        for character in text:
            if character.isspace() or shows(character) or (kept and character in _JOINERS and _joined(kept[-1])):
                kept.append(character)
        return "".join(kept)


def _joined(before: str) -> bool:
    """Whether a joiner behind this character is part of the spelling."""
    kind = unicodedata.category(before)
    return before in _JOINERS or kind in ("So", "Sk") or (kind[0] in "LM" and ord(before) > LATIN)
