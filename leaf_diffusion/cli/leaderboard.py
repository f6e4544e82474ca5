"""`leaf-diffusion leaderboard <run folders>`: the encoders of several runs in one page to sort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from leaf_diffusion.command_line import parse, run_command
from leaf_diffusion.reports.leaderboard import write_leaderboard


@dataclass(frozen=True)
class Options:
    """Write one page that ranks the encoders of several finished runs of an experiment, each figure linked to its run.

    The runs have to be of the same prompts, judges and settings; encoders and attacks may differ.
    """

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN_FOLDER ...")]]
    """The runs' folders, such as runs/t2i-world-1a2b3c4d."""
    output: Path = Path("leaderboard.html")
    """The page to write."""
    metrics: tuple[str, ...] = ()
    """Only these metrics, such as scene_accuracy clip_score; default: all."""


def leaderboard(words: Sequence[str]) -> int:
    """Write the page; returns the exit status. Raises OSError or ValueError for what is no run, or not comparable."""
    options = parse(Options, words, command="leaderboard")
    print(f"leaderboard: {write_leaderboard(options.runs, options.output, options.metrics)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("leaderboard", leaderboard, argv)
