"""Prompts and labels in HTML: escaped, each in its own direction, with a mark where a character is not seen."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup, escape

from leaf_diffusion.text.visible import END, ISOLATE, code

_JOINERS = "\u200c\u200d"  # they shape Persian words and emoji, and are seen by that


def prompt(text: str) -> Markup:
    """`text`, whole: a character that is not seen stays, closed off so that it reorders nothing, behind its code."""
    return Markup().join(map(_marked, text))


def finalize(value: Any) -> Any:
    """Whatever else a template prints, attributes too: codes for characters that are not seen. Not for line ends, which
    part the lines of JSON, nor for the isolates that our own sentences have."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    kept = f"\n{_JOINERS}{ISOLATE}{END}"
    return "".join(character if character in kept else code(character) for character in value)


def _marked(character: str) -> Markup:
    if character.isprintable() or character in _JOINERS:
        return escape(character)
    return Markup('<bdi class="code" data-code="{}">{}</bdi>').format(code(character), character)
