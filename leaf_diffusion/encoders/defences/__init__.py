"""Defences on the prompt itself, before tokenization."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from leaf_diffusion.encoders import sources
from leaf_diffusion.encoders.base import Defence
from leaf_diffusion.encoders.defences.canonical import Canonical
from leaf_diffusion.encoders.defences.caption_model import CaptionModel, english_captions, shipped_captions
from leaf_diffusion.encoders.defences.speller import Speller, english_speller
from leaf_diffusion.encoders.defences.visible import Visible
from leaf_diffusion.text.files import read_texts

__all__ = [
    "DEFENCES",
    "Canonical",
    "CaptionModel",
    "Speller",
    "Visible",
    "defence_from_name",
    "english_captions",
    "english_speller",
    "split_defence",
]


@cache
def _canonical(captions: str = "") -> Canonical:
    if not captions:
        return Canonical()
    own = sources.captions(captions)
    if own is None:
        own = [row.text for row in read_texts(captions)]
    if not any(own):
        raise ValueError(f"the defence canonical: {captions} holds no captions")
    return Canonical(CaptionModel([*shipped_captions(), *own]))


# the names that `defence=` takes
DEFENCES: dict[str, Callable[..., Defence]] = {
    "speller": english_speller,
    "visible": Visible,
    "canonical": _canonical,
}
_BEHIND = re.compile(rf"(.+)\+((?:{'|'.join(DEFENCES)})(?::.+)?)", re.DOTALL)


def defence_from_name(name: str) -> Defence:
    """The defence of a name. "canonical:FILE" knows a file's captions besides its own, "canonical:world" the world's.

    ValueError for another name, or for a file without captions; FileNotFoundError for one that is not there.
    """
    kind, colon, captions = name.partition(":")
    if kind not in DEFENCES:
        raise ValueError(f"unknown defence {name!r}; known: {', '.join(sorted(DEFENCES))}")
    if not colon:
        return DEFENCES[kind]()
    if DEFENCES[kind] is not _canonical or not captions:
        raise ValueError(f"the defence {name!r}: only canonical takes captions, as in canonical:FILE")
    return _canonical(captions)


def split_defence(source: str) -> tuple[str, str | None]:
    """("leaf", "canonical:world") of "leaf+canonical:world"; (source, None) where no defence stands behind it."""
    found = _BEHIND.fullmatch(source)
    return (found[1], found[2]) if found else (source, None)
