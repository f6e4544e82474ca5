"""`leaf-diffusion report <run folder>`: write the report again from what the run recorded; of two, a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape

from leaf_diffusion.command_line import parse, refuse_idle, run_command
from leaf_diffusion.reports.compare import write_comparison
from leaf_diffusion.reports.gallery import save_overview
from leaf_diffusion.reports.headline import headline
from leaf_diffusion.reports.html import write_report
from leaf_diffusion.reports.results import Results
from leaf_diffusion.reports.table import results_table
from leaf_diffusion.reports.text_tables import latex, markdown
from leaf_diffusion.runs import load_run


@dataclass(frozen=True)
class Options:
    """Write report.html of a finished run and print its main table, or its tables for a README or a paper.

    With two run folders: write a page that compares the second with the first.
    """

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN_FOLDER ...")]]
    """The run's folder, such as runs/t2i-world-1a2b3c4d; or two."""
    tables: Literal["terminal", "markdown", "latex"] = "terminal"
    """How to print: the main table and the headline, or all tables as Markdown or LaTeX and nothing else."""
    overview: Path | None = None
    """Also save an image (.png, .svg) of the most telling prompts, clean and attacked, as a README opens with."""
    metrics: tuple[str, ...] = ()
    """With markdown and latex: only these metrics, such as scene_accuracy clip_score drift."""


def report(words: Sequence[str]) -> int:
    """Write the report of a run folder; returns the exit status. Raises OSError or ValueError when it is none."""
    options = parse(Options, words, command="report")
    if len(options.runs) == 2:
        refuse_idle(options, "belongs to the report of one run", "tables", "overview", "metrics")
        print(f"comparison: {write_comparison(*options.runs)}")
        return 0
    if len(options.runs) != 1:
        raise ValueError(f"name one run folder, or two to compare them; got {len(options.runs)}")
    (run,) = options.runs
    results = Results.of(load_run(run))
    if options.tables == "terminal":
        refuse_idle(options, "belongs to --tables markdown or latex", "metrics")
    else:
        refuse_idle(options, "belongs to the report, which --tables leaves alone", "overview")
        print({"markdown": markdown, "latex": latex}[options.tables](results, options.metrics or None))
        return 0
    path = write_report(run)
    if options.overview is not None:
        save_overview(run, options.overview)
    console = Console()
    console.print(escape(headline(results).whole), highlight=False)
    console.print(results_table(results))
    console.print(f"report: {escape(str(path))}", soft_wrap=True, highlight=False)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("report", report, argv)
