"""What a swap costs, beside what it buys: every encoder in the baseline's place on clean prompts, from what runs recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from leaf_diffusion.reports.results import METRICS, Estimate, Metric, Results, Setting, sample_said
from leaf_diffusion.reports.sections import Cell, Matrix, difference_cell, mean_cell
from leaf_diffusion.runs import ResultRow
from leaf_diffusion.runs.read import read_spec
from leaf_diffusion.runs.records import Typed, parse
from leaf_diffusion.runs.results import Condition, CostRow, SwapCosts
from leaf_diffusion.text.visible import isolated

M = TypeVar("M", bound=Typed)
LINES = ("scene_accuracy", "clip_score", "sensitivity", "drift", "drift_features")
TITLES = {"drift": "Pixels moved", "drift_features": "Features moved"}


def own_costs(results: Results) -> list[Matrix]:
    """A line a metric, a column an encoder, all of this run's clean prompts; empty where there is nothing to set apart.

    Of drift the baseline's column has what another noise does: how far images lie apart when nothing is swapped.
    """
    others = [label for label in results.encoders if label != results.baseline]
    clean, lines = Setting("clean"), list[tuple[str, Sequence[Cell], str]]()
    for metric in (METRICS[key] for key in LINES):
        drift = metric.key.startswith("drift")
        rows = [
            results.swap_drift(label, metric.key) if drift else results.get(label, clean, metric.key)
            for label in others
        ]
        if not any(rows):
            continue
        first = _floor(results, metric) if drift else results.get(results.baseline, clean, metric.key)
        cells = [_floor_cell(first, metric) if drift else _cell(first, None, metric)]
        for label, row in zip(others, rows, strict=True):
            difference = None if drift else results.get(label, clean, metric.key, results.baseline)
            cells.append(_cell(row, difference, metric))
        lines.append((TITLES.get(metric.key, metric.title), cells, sample_said([first, *rows])))
    return [Matrix("On clean prompts", "", [results.baseline, *others], lines)] if lines else []


class SwapSettings(Typed):
    """Of the specification of a swap-cost run: the fingerprints of its encoders and of its pipeline."""

    encoders: dict[str, str]
    pipeline_weights: str


def read_swap_cost(folder: Path) -> tuple[SwapCosts, SwapSettings]:
    """The rows and conditions of a folder of `leaf-diffusion swap-cost`, and what it was measured with.

    Raises FileNotFoundError where there is none, ValueError naming the file where it does not fit.
    """
    paths = folder / "results.json", folder / "spec.json"
    if missing := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"--swap-cost {folder}: no {missing[0].name}; give the folder of a finished swap-cost run"
        )
    try:
        found = json.loads(paths[0].read_text(encoding="utf-8"))
        spec = read_spec(paths[1])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--swap-cost {folder}: results.json or spec.json is damaged ({error})") from error
    if spec.settings.get("experiment") != "swap-cost" or not isinstance(found, dict):
        raise ValueError(
            f"--swap-cost {folder} is the folder of another experiment; give one of `leaf-diffusion swap-cost`"
        )
    try:
        whole = parse(SwapCosts, {name: found[name] for name in ("rows", "conditions") if name in found})
    except ValueError as error:
        raise ValueError(f"--swap-cost {folder}: results.json is damaged, {error}") from error
    try:
        settings = parse(SwapSettings, spec.settings)
    except ValueError as error:
        raise ValueError(f"--swap-cost {folder}: spec.json is damaged, {error}") from error
    others = {row.encoder for row in whole.rows if row.baseline is not None}  # all but the first encoder
    rows = [_only(CostRow, row) for row in whole.rows if row.baseline not in others]
    conditions = [_only(Condition, each) for each in whole.conditions]
    return SwapCosts(identity=spec.identity, rows=rows, conditions=conditions), settings


def _only(model: type[M], found: M) -> M:
    """Without the fields that the model does not name."""
    return parse(model, found.model_dump(include=set(model.model_fields)))


def condition_costs(found: SwapCosts, results: Results) -> list[Matrix]:
    """The leading metric, then pixels moved: a line a condition of a swap-cost run, a column an encoder."""
    rows = {(row.condition, row.encoder, row.protocol, row.metric, row.baseline): row for row in found.rows}
    others = [label for label in results.encoders if label != results.baseline]
    main = next((key for key in ("scene_accuracy", "clip_score") if any(place[3] == key for place in rows)), None)
    made = []
    for metric in (METRICS[key] for key in (main, "drift") if key is not None):
        drift, lines = metric.key == "drift", list[tuple[str, Sequence[Cell], str]]()
        for key, title in ((condition.key, condition.title) for condition in found.conditions):
            first = rows.get((key, results.baseline, "floor" if drift else "clean", metric.key, None))
            mine = [rows.get((key, label, "clean", metric.key, None)) for label in others]
            if any(mine):
                apart = [rows.get((key, label, "clean", metric.key, results.baseline)) for label in others]
                cells = [_cell(row, difference, metric) for row, difference in zip(mine, apart, strict=True)]
                at_first = _floor_cell(first, metric) if drift else _cell(first, None, metric)
                lines.append((title, [at_first, *cells], sample_said([first, *mine])))
        if lines:
            title = f"{TITLES.get(metric.key, metric.title)}, by what else a pipeline is given"
            made.append(Matrix(title, "", [results.baseline, *others], lines))
    return made


def _floor(results: Results, metric: Metric) -> ResultRow | None:
    floors = (r for r in results.rows if r.protocol == "floor" and r.metric == metric.key)
    return next(floors, None)


def _floor_cell(row: Estimate | None, metric: Metric) -> Cell:
    return Cell() if row is None else Cell(metric.show(row.mean), "another noise")


def _cell(row: Estimate | None, difference: Estimate | None, metric: Metric) -> Cell:
    """A mean; beside it the difference to the baseline with its interval, or the mean's own interval."""
    mean = mean_cell(row, metric)
    if difference is None:
        return replace(mean, bar=None)
    apart = difference_cell(difference, metric)
    interval = f" ({apart.sub})" if apart.sub else ""
    return Cell(mean.text, f"{apart.text}{interval}", apart.tone)


def told(found: SwapCosts | None) -> str:
    """Where the conditions were measured, in a few words; "" without them."""
    return "" if found is None else f"run {isolated((found.identity or 'unrecorded')[:8])} of swap-cost"
