"""`leaf-diffusion status <run folder>`: how far a run is, who works on it, and how long it will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from leaf_diffusion.command_line import parse, run_command
from leaf_diffusion.runs.progress import Status, span, status
from leaf_diffusion.text.visible import isolated


@dataclass(frozen=True)
class Options:
    """How far runs are, who works on them, and how long they will take; the exit status is 0 where all of them are
    finished, else 3."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN_FOLDER ...")]]
    """Run folders, such as runs/t2i-world-1a2b3c4d."""


def print_status(words: Sequence[str]) -> int:
    """Print the status of run folders; returns the exit status. Raises ValueError or OSError for what is no run."""
    folders = parse(Options, words, command="status").runs
    if not folders:
        raise ValueError("name at least one run folder")
    found = [(folder, status(folder)) for folder in folders]
    for folder, each in found:
        print("\n".join(_lines(folder, each)))
    return 0 if all(each.finished for _, each in found) else 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("status", print_status, argv)


def _lines(folder: Path, found: Status) -> list[str]:
    if found.finished:
        said = "finished"
    elif found.writers:
        said = f"{found.writers} process{'es' if found.writers > 1 else ''} at work"
    else:
        said = "nobody at work; the run's command continues it"
    since = "" if found.idle is None else f", last record {span(found.idle)} ago"
    lines = [f"{isolated(str(folder))}: {said}{since}"]
    for kind, (done, total) in found.units.items():
        lines.append(f"  {kind:<9}{done:>8,} of {total:,} ({done / total if total else 1:.0%}){_left(found, kind)}")
    if found.left is not None and not found.finished:
        lines.append(f"  {found.left}")
    return lines


def _left(found: Status, kind: str) -> str:
    left = None if found.left is None else found.left.stages.get(kind)
    return f", about {span(left)} left" if left else ""
