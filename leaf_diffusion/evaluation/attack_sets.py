"""Attack sets: attacked prompts as rows of a file, and as the terminal shows them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein
from rich.markup import escape
from rich.table import Table

from leaf_diffusion.attacks import AttackResult, kind_of
from leaf_diffusion.metrics.bounds import attack_note
from leaf_diffusion.runs.experiment_records import AttackedText
from leaf_diffusion.runs.files import atomic_write, explained
from leaf_diffusion.runs.records import Count, Number, Typed, parse
from leaf_diffusion.text.decoding import parse_json, text_lines, whole_text
from leaf_diffusion.text.visible import apart, visible


class GivenAttack(Typed):
    """A line of an attack set, as it is taken over into the records; more that it says is kept. `k` counts what the attack
    counts: edits of characters, unless it is one of ours that counts others."""

    prompt: str
    perturbed: str
    source: str
    k: Count
    attack: str | None = None
    constraint: str | None = None
    score: Number | None = None
    queries: Number | None = None
    fingerprint: str | None = None
    exact: bool | None = None


def read_attacks(path: Path) -> list[GivenAttack]:
    """Attack sets: one JSON object a line with "prompt", "perturbed", "source" and "k" at least."""
    rows: list[GivenAttack] = []
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
            found = parse(GivenAttack, row)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        kind = kind_of(found.attack)
        far, edited = kind.measure(found.prompt, found.perturbed), "words" if kind.unit == "word" else "edits"
        if far > found.k * kind.distance_per_edit:
            raise ValueError(f"{path}, line {number}: {far} {edited} lie between the two prompts, but k is {found.k}")
        rows.append(found)
    if not rows:
        raise ValueError(f"{path} holds no attacked prompts")
    cells: dict[tuple[str, int], set[str]] = {}
    for given in rows:
        cell = cells.setdefault((given.source, given.k), set())
        if given.prompt in cell:
            raise ValueError(f"{path}: {given.prompt[:80]!r} is there twice for source {given.source!r}, k={given.k}")
        cell.add(given.prompt)
    return rows


def write_attacks(path: Path, rows: Iterable[Typed]) -> None:
    """Write attack sets whole or not at all. Raises RunFolderError."""
    with explained(path.parent, "creating"):
        path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row.model_dump(exclude_unset=True), ensure_ascii=False) + "\n" for row in rows)
    atomic_write(path, "".join(lines).encode())


def attacked_text(result: AttackResult, source: str, k: int, attack: str, constraint: str) -> AttackedText:
    """A result as it is recorded: one line of an attack set."""
    values = asdict(result)
    del values["token_ids"], values["original"]
    place = {"source": source, "k": k, "attack": attack, "constraint": constraint}
    changes = [list(edit) for edit in edits(result.original, result.perturbed)]
    return parse(AttackedText, {"prompt": result.original, **values, **place, "edits": changes})


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


def attack_table(results: Sequence[AttackResult], title: str, rows: int) -> Table:
    """The strongest attacks: distance, score, queries and the prompt with its edits marked."""
    ordered = sorted(results, key=lambda result: -result.score)
    shown = ordered[: rows or None]
    table = Table(title=title, caption=f"{len(shown)} of {len(results)} prompts" if len(shown) < len(results) else None)
    for column in ("distance", "score", "queries"):
        table.add_column(column, justify="right")
    table.add_column("attacked prompt")
    table.add_column("edits")
    for result in shown:
        text = marked(result.original, result.perturbed) + (" [yellow](truncated)[/]" if result.truncated else "")
        edited = escape(named(result.original, result.perturbed)) or "unchanged"
        figures = (str(result.distance), f"{result.score:.4g}", str(result.queries))
        table.add_row(*figures, text, edited)
    return table


def attack_summary(results: Sequence[AttackResult]) -> str:
    """How many, how far, how strong, for how many exactly; truncated and unchanged prompts are counted."""
    scores, far = [result.score for result in results], np.mean([result.distance for result in results])
    exact = [result.exact for result in results]
    return (
        f"{len(results)} prompts: mean distance {far:.2f}, score mean {np.mean(scores):.4g} "
        f"(median {np.median(scores):.4g}, max {max(scores):.4g}), {sum(r.queries for r in results)} queries, "
        f"{sum(r.perturbed == r.original for r in results)} unchanged, {sum(r.truncated for r in results)} truncated, "
        f"exact for {sum(exact)}\n{attack_note(exact, higher_is_better=False)}"
    )
