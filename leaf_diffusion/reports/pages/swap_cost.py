"""The table and the page of `leaf-diffusion swap-cost`: views of its results, nothing is computed but the layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from leaf_diffusion.evaluation.swap_cost.conditions import Asked, Condition
from leaf_diffusion.evaluation.swap_cost.measure import FLOOR, Series, Values, image_path, series
from leaf_diffusion.reports.html import templates
from leaf_diffusion.reports.images import data_uri
from leaf_diffusion.reports.results import METRICS, Metric, Row
from leaf_diffusion.reports.sections import Cell, Matrix, difference_cell, mean_cell
from leaf_diffusion.text.visible import isolated

SHOWN = 4
"""Prompts with images on the page, a condition."""
STYLE = Metric(
    "style",
    "Images in the style",
    "share of images whose edge is nearer to the LoRA's wall than to any background of the world; the style itself is "
    "no part of the judge's verdict",
    scale=100,
    digits=0,
    unit="%",
)
SAME_NOISE = "difference from the first encoder's image of the same prompt and noise"
SHOWN_METRICS = (
    replace(METRICS["scene_accuracy"], meaning=METRICS["scene_accuracy"].meaning.replace("clean ", "plain ")),
    STYLE,
    replace(METRICS["clip_score"], meaning=METRICS["clip_score"].meaning.replace("clean ", "plain ")),
    replace(METRICS["drift"], title="Pixels moved", meaning=f"{SAME_NOISE}, RMSE of pixels in 0 to 1"),
    replace(METRICS["drift_features"], title="Features moved", meaning=f"{SAME_NOISE}, 1 − cosine of judge's features"),
)


class Figures:
    """The result rows, looked up."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = {(r["condition"], r["encoder"], r["protocol"], r["metric"], r["baseline"]): r for r in rows}

    def get(
        self, key: str, label: str, metric: str, baseline: str | None = None, protocol: str = "clean"
    ) -> Row | None:
        return self._rows.get((key, label, protocol, metric, baseline))

    @property
    def metrics(self) -> list[Metric]:
        keys = {place[3] for place in self._rows}
        return [metric for metric in SHOWN_METRICS if metric.key in keys]


def matrices(figures: Figures, conditions: Sequence[Condition], labels: Sequence[str]) -> list[tuple[Matrix, bool]]:
    """A table a metric, then one of its differences (False), conditions down and encoders across."""
    found = []
    first, others = labels[0], labels[1:]
    for metric in figures.metrics:
        drift = metric.key.startswith("drift")
        named = [isolated(label) for label in labels]
        columns = [*named[1:], f"{named[0]}, another noise"] if drift else named
        means, differences = [], []
        for condition in conditions:
            rows = [figures.get(condition.key, label, metric.key) for label in (others if drift else labels)]
            rows += [figures.get(condition.key, first, metric.key, protocol=FLOOR)] if drift else []
            if any(rows):
                n = str(len(condition.prompts))
                means.append((condition.title, [mean_cell(row, metric) for row in rows], n))
                pairs = [figures.get(condition.key, label, metric.key, first) for label in others]
                differences.append((condition.title, [difference_cell(row, metric) for row in pairs], n))
        found.append((Matrix(metric.title, metric.meaning, columns, means), True))
        if not drift:
            unit = f"{metric.title}, difference{' in points' if metric.unit == '%' else ''}"
            pairs_named = [f"{label} − {named[0]}" for label in named[1:]]
            found.append((Matrix(unit, "", pairs_named, differences), False))
    return found


def headline(figures: Figures, conditions: Sequence[Condition], labels: Sequence[str]) -> str:
    """What the first robust encoder costs by the leading metric, condition by condition where it is clear."""
    first, robust = labels[:2]
    swap = f"{isolated(robust)} in place of {isolated(first)}"
    metric = figures.metrics[0]
    if metric.key.startswith("drift"):
        return f"{swap}: how far the images move"
    rows = [(each.title, figures.get(each.key, robust, metric.key, first)) for each in conditions]
    cells = [(title, difference_cell(row, metric)) for title, row in rows if row is not None]
    said = [f"{title} {cell.text}" for title, cell in cells if cell.tone]
    what = "right images" if metric.key == "scene_accuracy" else f"the images' {metric.title}s"
    clear = f"differ clearly in {len(said)} of {len(cells)} conditions: {', '.join(said)}"
    return f"{swap}: {what} {clear if said else 'differ clearly in no condition'}"


def table(figures: Figures, conditions: Sequence[Condition], labels: Sequence[str]) -> Table:
    """The terminal's table: each mean, in brackets its difference to the first encoder, under it the 95% interval."""
    title = f"in brackets: minus {isolated(labels[0])}, 95% interval under it"
    shown = Table(title=escape(title), box=SIMPLE_HEAD, padding=(0, 1), title_justify="left")
    for column in ("", *map(isolated, labels), "another noise", "n"):
        shown.add_column(escape(column))
    for condition in conditions:
        shown.add_row(f"[bold]{escape(condition.title)}[/]")
        for metric in figures.metrics:
            cells = []
            for label in labels:
                mean = mean_cell(figures.get(condition.key, label, metric.key), metric)
                row = figures.get(condition.key, label, metric.key, labels[0])
                difference = difference_cell(row, metric)
                cells.append(f"{mean.text} ({difference.text})\n{difference.sub}" if row else mean.text)
            cells.append(mean_cell(figures.get(condition.key, labels[0], metric.key, protocol=FLOOR), metric).text)
            if set(cells) != {Cell().text}:
                shown.add_row(metric.title, *map(escape, cells), str(len(condition.prompts)))
    return shown


def page(
    results: Mapping[str, Any],
    conditions: Sequence[Condition],
    measured: Mapping[Series, Values],
    labels: Sequence[str],
    folder: Path,
) -> str:
    """swap-cost.html: one file that needs no network and runs no script."""
    figures = Figures(results["rows"])
    galleries = [
        {
            "condition": condition,
            "truncated": results["conditions"][i]["truncated"],
            "rows": [
                {
                    "asked": condition.prompts[n],
                    "cells": _cells(condition, condition.prompts[n], n, measured, labels, folder),
                }
                for n in _telling(condition, measured, labels)
            ],
        }
        for i, condition in enumerate(conditions)
    ]
    return (
        templates()
        .get_template("swap_cost.html.j2")
        .render(
            headline=headline(figures, conditions, labels),
            encoders=labels,
            tables=matrices(figures, conditions, labels),
            galleries=galleries,
            left_out=results["left_out"],
            facts={**results["facts"], "encoders": ", ".join(map(isolated, labels))},
            identity=results["identity"],
            environment=json.dumps(results["environment"], indent=2, ensure_ascii=False),
        )
    )


def _telling(condition: Condition, measured: Mapping[Series, Values], labels: Sequence[str]) -> list[int]:
    """The numbers of the prompts to show: those that the encoders differ on first, otherwise in their order."""
    verdicts = [measured[condition.key, label, "clean"].get("scene_accuracy") for label in labels]
    numbers = range(len(condition.prompts))
    differ = [len({each[n] for each in verdicts if each is not None}) > 1 for n in numbers]
    return sorted(numbers, key=lambda n: not differ[n])[:SHOWN]


def _cells(
    condition: Condition,
    asked: Asked,
    n: int,
    measured: Mapping[Series, Values],
    labels: Sequence[str],
    folder: Path,
) -> list[dict[str, Any]]:
    """Images of one prompt as the report's macros print them: every encoder, then the first with another noise."""
    cells = []
    for number, one in enumerate(series(condition, labels)):
        values = measured[one]
        uri, pixelated = data_uri(image_path(folder, one, number, asked))
        right = values["scene_accuracy"][n] if "scene_accuracy" in values else None
        cells.append(
            {
                "uri": uri,
                "pixelated": pixelated,
                "encoder": one[1],
                "label": condition.title + (", another noise" if one[2] == FLOOR else ""),
                "verdict": {1.0: "right", 0.0: "wrong", None: ""}[right],
                "numbers": ", ".join(f"{name.replace('_', ' ')} {each[n]:.3g}" for name, each in values.items()),
            }
        )
    return cells
