"""Untrusted text where people read it: what is not seen or reorders its surroundings is shown, and stays in its place."""

from __future__ import annotations

import unicodedata

ISOLATE, END = "\u2068", "\u2069"
"""First strong isolate and its end: what stands between is laid out by itself (Unicode Annex 9)."""


def code(character: str) -> str:
    r""" "\n", "\x1b", "\u202e" for a character that is no visible one, as Python writes it; a visible one as it is."""
    return character if character.isprintable() else repr(character)[1:-1]


def visible(text: str) -> str:
    """`text` with codes for control characters, marks of direction, line ends, spaces of no or odd width."""
    return "".join(map(code, text))


def readable(text: str) -> str:
    """`visible` for a sentence of our own: the isolates around the names in it stay."""
    return "".join(character if character in (ISOLATE, END) else code(character) for character in text)


def isolated(text: str) -> str:
    """`visible`, and set apart where it holds letters from right to left: what stands beside it keeps its order."""
    return apart(text, visible(text))


def apart(text: str, shown: str) -> str:
    """`shown` (what `text` became), set apart where `text` holds letters from right to left."""
    rightward = any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in text)
    return f"{ISOLATE}{shown}{END}" if rightward else shown
