"""The prompts of a run, and attack sets as files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidfuzz.distance import Levenshtein
from rich.markup import escape

from leaf_diffusion.runs.files import atomic_write, explained
from leaf_diffusion.runs.records import Count, Number, Typed, parse
from leaf_diffusion.text.decoding import parse_json, text_lines, whole_text
from leaf_diffusion.text.files import first_of_each_image, read_texts
from leaf_diffusion.text.visible import apart, visible
from leaf_diffusion.world import WorldPrompt, world_prompts


class _Given(Typed):
    """What an attack set may say of an attack, as it is taken over into the records."""

    k: Count
    attack: str | None = None
    constraint: str | None = None
    score: Number | None = None
    queries: Number | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt and, in the world, the scene it asks for. The id follows from the text, never from a position."""

    text: str
    scene: Any = None

    @property
    def id(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


def from_world(n: int, seed: int, **shares: float) -> list[Prompt]:
    """The world's prompts, `shares` of which have several things (`world_prompts`)."""
    prompts: list[WorldPrompt] = world_prompts(n, seed, **shares)
    return [Prompt(prompt.text, prompt.scene) for prompt in prompts]


def from_file(path: Path, column: str | None = None, split: str | None = None, *, every: bool = False) -> list[Prompt]:
    """The prompts of whatever `read_texts` reads; of captions of images the first of each image, or `every` one.

    Blank ones are refused, except at the end; repeated prompts count once.
    """
    rows = read_texts(path, column=column, split=split)
    while rows and not rows[-1].text:
        rows.pop()
    if not rows:
        of_split = "" if split is None else f" of split {split!r}"
        raise ValueError(f"{path} holds no prompts{of_split}: write one prompt a line")
    if blank := [row.where for row in rows if not row.text]:
        raise ValueError(f"{blank[0]}: an empty prompt; remove the line ({len(blank)} such lines)")
    return [Prompt(text) for text in dict.fromkeys(row.text for row in (rows if every else first_of_each_image(rows)))]


def edits(original: str, perturbed: str) -> list[tuple[int, int, str]]:
    """(start, end, replacement) of the spans of `original` that differ, left to right."""
    codes = Levenshtein.opcodes(original, perturbed)
    return [(c.src_start, c.src_end, perturbed[c.dest_start : c.dest_end]) for c in codes if c.tag != "equal"]


def marked(original: str, perturbed: str) -> str:
    """`perturbed` as rich markup, with what is new in bold red, and as codes what would command the terminal or is not
    seen; in its own direction."""

    def shown(text: str) -> str:
        return escape(visible(text))

    parts, at = [], 0
    for start, end, new in edits(original, perturbed):
        parts += [shown(original[at:start]), f"[bold red]{shown(new)}[/]" if new else ""]
        at = end
    return apart(perturbed, "".join([*parts, shown(original[at:])]))


def named(original: str, perturbed: str) -> str:
    """The edits without colour: 'o'→'G' at 5, +'x' at 3, -'y' at 7 (code points of the original, from 0)."""
    said = []
    for start, end, new in edits(original, perturbed):
        old = original[start:end]
        before, after = (apart(text, repr(text)) for text in (old, new))
        said.append((f"{before}→{after}" if old and new else f"+{after}" if new else f"-{before}") + f" at {start}")
    return ", ".join(said)


def read_attacks(path: Path) -> list[dict[str, Any]]:
    """Attack sets: one JSON object a line with "prompt", "perturbed", "source" and "k" at least."""
    rows = []
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    lines = [(number, line) for number, line in text_lines(path) if line.strip()]
    for number, line in lines:
        row = parse_json(line, f"{path}, line {number}")
        if not isinstance(row, dict) or (missing := {"prompt", "perturbed", "source", "k"} - set(row)):
            lacks = ", ".join(sorted(missing)) if isinstance(row, dict) else "an object"
            raise ValueError(f"{path}, line {number}: {lacks} missing; write attack sets with `leaf-diffusion attack`")
        if not all(isinstance(row[key], str) and row[key].strip() for key in ("prompt", "perturbed", "source")):
            raise ValueError(f"{path}, line {number}: prompt, perturbed and source must be texts that are not empty")
        for key in ("prompt", "perturbed", "source"):
            whole_text(row[key], f"{path}, line {number}")
        if not isinstance(row["k"], int) or isinstance(row["k"], bool):
            raise ValueError(
                f"{path}, line {number}: k must be a whole number of edits, not a {type(row['k']).__name__}"
            )
        try:
            parse(_Given, row)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        far = int(Levenshtein.distance(row["prompt"], row["perturbed"]))
        if far > row["k"]:
            raise ValueError(f"{path}, line {number}: {far} edits lie between the two prompts, but k is {row['k']}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no attacked prompts")
    cells: dict[tuple[str, int], set[str]] = {}
    for row in rows:
        cell = cells.setdefault((row["source"], row["k"]), set())
        if row["prompt"] in cell:
            raise ValueError(
                f"{path}: {row['prompt'][:80]!r} is there twice for source {row['source']!r}, k={row['k']}"
            )
        cell.add(row["prompt"])
    return rows


def write_attacks(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write attack sets whole or not at all. Raises RunFolderError."""
    with explained(path.parent, "creating"):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
