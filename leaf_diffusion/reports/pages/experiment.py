"""The page of an experiment: what was found, tables with intervals, plots, examples; one file, no script, no network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from leaf_diffusion.reports.gallery import marks
from leaf_diffusion.reports.html import templates
from leaf_diffusion.reports.images import data_uri
from leaf_diffusion.reports.metrics import attack_notes, metric_of
from leaf_diffusion.reports.plots import Point, panel, point
from leaf_diffusion.reports.results import REPORT, Metric, sample_said
from leaf_diffusion.reports.sections import Matrix, ShownImage, difference_cell, mean_cell
from leaf_diffusion.reports.verdicts import WORDS, verdict
from leaf_diffusion.runs import ResultRow, RunSpec, atomic_write
from leaf_diffusion.text.visible import isolated

PLACE = ("protocol", "source", "attack", "constraint", "k")
"""With the `more` columns of an experiment these say which line of a table a row belongs to."""


@dataclass(frozen=True)
class ExampleCell:
    """One encoder's outcome. `original`: show the edits of `text` against it; `images` are files of the run."""

    label: str
    text: str = ""
    original: str | None = None
    images: Sequence[Path] = ()
    verdict: str = ""
    """ "right", "wrong" or nothing."""
    note: str = ""


@dataclass(frozen=True)
class Example:
    """A prompt, a caption or an image, and what came of it."""

    title: str
    cells: Sequence[ExampleCell]
    note: str = ""


@dataclass(frozen=True)
class Section:
    title: str
    about: str = ""
    matrices: Sequence[Matrix] = ()
    plots: Sequence[tuple[str, str]] = ()
    """(title, SVG)"""
    examples: Sequence[Example] = ()
    side_by_side: bool = False
    """Whether an example is one line of images, an encoder each, or a line for each encoder."""
    sentences: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """What report.html says; texts are escaped."""

    kicker: str
    headline: str
    facts: Mapping[str, str]
    encoders: Sequence[str]
    sections: Sequence[Section]
    notes: Sequence[str] = field(default=())


def line_label(row: ResultRow) -> str:
    """ "clean", "charmer on itself, k=1, no-new-words"."""
    if row.protocol == "clean":
        return "clean"
    against = "on itself" if row.protocol == "adaptive" else f"on {isolated(row.source or '')}"
    rule = {None: "", "none": ", unconstrained"}.get(row.constraint, f", {row.constraint}")
    return f"{row.attack} {against}, k={row.k}{rule}"


def main_said(rows: Sequence[ResultRow]) -> str:
    """The main comparison and what it came to, in a sentence; "" where none was declared, or none was measured."""
    row = next((row for row in rows if row.main and row.baseline is not None), None)
    if row is None:
        return ""
    metric, pair = metric_of(row.metric), f"{isolated(row.encoder)} − {isolated(row.baseline or '')}"
    size = metric.show_difference(row.mean) + (" points" if metric.unit == "%" else "")
    interval = metric.show_interval(row)
    spread = f"95% interval {interval}, " if interval else ""
    notes = "".join(f" {note}" for note in attack_notes([row], metric))
    return (
        f"Main comparison, declared before the run: {metric.title}, {line_label(row)}: {pair} {size} "
        f"({spread}n={sample_said([row])}): {WORDS[verdict(row, metric)]}.{notes}"
    )


def means_said(rows: Sequence[ResultRow], metric: Metric) -> str:
    """ "original 78%, leaf 91%": the means among `rows`, for a headline."""
    means = [row for row in rows if row.metric == metric.key and row.baseline is None]
    return ", ".join(f"{isolated(row.encoder)} {metric.show(row.mean)}" for row in means)


def matrices(
    rows: Sequence[ResultRow],
    metrics: Sequence[Metric],
    *,
    label: Callable[[ResultRow], str] = line_label,
    more: Sequence[str] = (),
) -> list[Matrix]:
    """For each metric a table of means, then one of paired differences: settings down, encoders across.

    Names are set apart (`isolated`), as whoever makes a Matrix does with what comes from outside. `more` names columns of
    the rows, besides protocol, source, attack, constraint and k, that part the lines.
    """
    found = []
    for metric in metrics:
        mine = [row for row in rows if row.metric == metric.key]
        for paired in (False, True):
            chosen = [row for row in mine if (row.baseline is not None) == paired]
            columns = list(dict.fromkeys((row.encoder, row.baseline) for row in chosen))
            lines: dict[tuple[object, ...], dict[tuple[str, str | None], ResultRow]] = {}
            for row in chosen:
                place = tuple("" if own and name == "source" else row.column(name) for own in [row.protocol != "transfer"]
                              for name in (*PLACE, *more))  # fmt: skip
                lines.setdefault(place, {})[row.encoder, row.baseline] = row
            if not lines:
                continue
            cell = difference_cell if paired else mean_cell
            made = []
            for line in lines.values():
                cells = [cell(line.get(c), metric) for c in columns]
                some = next(iter(line.values()))
                made.append((label(some) + " (exact)" * bool(some.exact), cells, sample_said(line.values())))
            names = [" − ".join(isolated(name) for name in pair if name) for pair in columns]
            points = ", in points" if metric.unit == "%" else ""
            title = f"{metric.title}, differences{points}" if paired else metric.title
            found.append(Matrix(title, "" if paired else metric.meaning, names, made, attack_notes(chosen, metric)))
    return found


def curve(
    rows: Sequence[ResultRow],
    metric: Metric,
    encoders: Sequence[str],
    *,
    x: Callable[[ResultRow], float],
    xlabel: str,
    name: str,
    logarithmic: bool = False,
) -> str:
    """SVG of a metric over `x`, a line an encoder with 95% intervals; "" where there is nothing to draw."""
    lines: dict[str, list[Point]] = {encoder: [] for encoder in encoders}
    for row in rows:
        if row.metric == metric.key and row.baseline is None and row.encoder in lines:
            lines[row.encoder] += point(x(row), row, metric)
    if not any(lines.values()):
        return ""
    ylabel = f"{metric.title}{' (%)' if metric.unit == '%' else ''}"
    sorted_lines = {encoder: sorted(line) for encoder, line in lines.items()}
    return panel(
        sorted_lines,
        name,
        xlabel=xlabel,
        ylabel=ylabel,
        limits=(-3, 103) if metric.unit == "%" else None,
        logarithmic=logarithmic,
    )


def write_page(folder: Path, page: Page, spec: RunSpec, environment: Mapping[str, object], main: str = "") -> Path:
    """Write report.html into the run's folder and return its path. main: what `main_said` says. Raises RunFolderError."""
    sections = [
        {
            "title": section.title,
            "about": section.about,
            "matrices": [(matrix, "−" not in "".join(matrix.columns)) for matrix in section.matrices],
            "plots": [(title, Markup(svg)) for title, svg in section.plots if svg],
            "examples": [(each.title, [_cell(cell) for cell in each.cells], each.note) for each in section.examples],
            "side_by_side": section.side_by_side,
            "sentences": section.sentences,
        }
        for section in page.sections
    ]
    html = (
        templates()
        .get_template("experiment.html.j2")
        .render(
            page=page,
            main=main,
            encoders=[isolated(label) for label in page.encoders],
            sections=sections,
            identity=spec.identity,
            command=environment.get("command", "not recorded"),
            environment=json.dumps(environment, indent=2, ensure_ascii=False),
            spec=json.dumps(spec.settings, indent=2, ensure_ascii=False),
        )
    )
    path = folder / REPORT
    atomic_write(path, html.encode())
    return path


@dataclass(frozen=True)
class _ShownCell:
    """An example's cell as the template shows it."""

    encoder: str
    verdict: str
    note: str
    images: Sequence[ShownImage]
    marks: Sequence[tuple[str, str]]
    shattered: Sequence[Sequence[str]] = ()


def _cell(cell: ExampleCell) -> _ShownCell:
    images = [ShownImage(cell.label, cell.note, *data_uri(path), cell.verdict, cell.note) for path in cell.images]
    edited = marks(cell.original, cell.text) if cell.original is not None else [("same", cell.text)] * bool(cell.text)
    return _ShownCell(cell.label, cell.verdict, cell.note, images, edited)
