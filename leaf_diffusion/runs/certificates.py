"""Certificates: a file of prompts and of what their edits are read as, one JSON object a line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from leaf_diffusion.runs.files import explained, read_plain
from leaf_diffusion.runs.records import Count, Digest, Typed, parse
from leaf_diffusion.text.decoding import parse_json, text_lines


class Left(Typed):
    """What some edits are read as that are not undone: how many they are, and one of them."""

    read: str
    edits: Count
    edit: str


class Certificate(Typed):
    """A line of a file of certificates.

    `edits`: allowed edits of the prompt, all of them (`sampled`: so many drawn at random); `undone`: those that are read as
    the same tokens as the prompt; `certified`: all are, so the image is the same to the bit, whatever seed, encoder and
    sampler (None where all that were drawn are, as others may not be); `edit`: one that is not undone; `left`: all of
    those, by what they are read as; `reads`: the prompt behind the defence; `basis`: of tokenizer, defence, constraint and k.
    """

    prompt: str
    edits: Count
    undone: Count
    certified: bool | None
    edit: str | None
    reads: str
    left: list[Left] = Field(default_factory=list)
    k: Count = 1
    sampled: bool = False
    basis: Digest


def read_certificates(path: Path, expected: str) -> list[Certificate]:
    """The certificates of a file that was begun. ValueError for a line that is none, or of another basis."""
    content = read_plain(path)
    with explained(path, "opening"):
        os.truncate(path, content.rfind(b"\n") + 1)  # what a crash left of a line
    found = list[Certificate]()
    for number, line in text_lines(path):
        where = f"{path}, line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise ValueError(f"{where}: no certificate but a {type(row).__name__}; choose another --output")
        try:
            found.append(parse(Certificate, row))
        except ValueError as error:
            raise ValueError(f"{where}: no certificate ({error}); choose another --output") from error
        if found[-1].basis != expected:
            raise ValueError(f"{where}: of another tokenizer, defence, constraint or k; choose another --output")
    return found


def summary(found: Sequence[Certificate]) -> str:
    """One line: how many prompts and edits, and how many of them are certified and undone."""
    edits, undone = sum(each.edits for each in found), sum(each.undone for each in found)
    share = f"{100 * undone / edits:.2f}% of {edits:,} edits undone" if edits else "no edit is allowed"
    if any(each.sampled for each in found):
        return f"{len(found)} prompts: {share} (drawn at random)"
    whole = sum(bool(each.certified) for each in found)
    return f"{len(found)} prompts: {share}; {100 * whole / max(len(found), 1):.0f}% of the prompts ({whole}) certified whole"
