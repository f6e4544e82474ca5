"""Two runs side by side: what changed between them, paired by prompt."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from leaf_diffusion.metrics import Interval, holm, mean_interval
from leaf_diffusion.metrics.bounds import attack_note
from leaf_diffusion.reports import sections
from leaf_diffusion.reports.gallery import GalleryRow, gallery_rows
from leaf_diffusion.reports.html import templates
from leaf_diffusion.reports.metrics import is_share
from leaf_diffusion.reports.results import (
    METRICS,
    PAIRED,
    SCORE_FIELDS,
    Metric,
    Results,
    Setting,
    sample_said,
    setting_of,
)
from leaf_diffusion.runs import Run, Values, atomic_write, load_run, prompt_values
from leaf_diffusion.runs.records import ImageRecord, ScoreRecord

SHOWN = 24
"""Changed images on the page."""
Place = tuple[str, Setting, str]
"""Encoder, setting, metric."""


@dataclass(frozen=True)
class Mean:
    """A mean or a difference; without an interval where there is one prompt."""

    mean: float
    ci_low: float | None
    ci_high: float | None
    n: int
    clusters: int
    p_adjusted: float | None = None


@dataclass(frozen=True)
class Changed:
    """A prompt whose image is right in one run and wrong in the other."""

    prompt: str
    encoder: str
    label: str
    cells: Sequence[sections.ShownImage | None]


def write_comparison(one: Run | str | Path, other: Run | str | Path, path: Path | None = None) -> Path:
    """Write a page that sets run `other` against run `one`; default: compared-with-<name>.html in the folder of `other`.

    Raises FileNotFoundError for no run folder, ValueError for runs that share no encoder, setting and prompt.
    """
    runs = [run if isinstance(run, Run) else load_run(run) for run in (one, other)]
    path = path or runs[1].folder / f"compared-with-{runs[0].folder.resolve().name}.html"
    page = templates().get_template("compare.html.j2").render(_values(runs, _names(runs)))
    atomic_write(path, page.encode())
    return path


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders' names, or their paths where these are equal."""
    names = [run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _values(runs: Sequence[Run], names: Sequence[str]) -> dict[str, object]:
    found = [_by_place(run) for run in runs]
    results = [Results.of(run) for run in runs]
    shared = {place for place in found[0] if place in found[1] and found[0][place].keys() & found[1][place].keys()}
    if not shared:
        raise ValueError(
            f"{runs[0].folder} and {runs[1].folder} share no encoder, setting and prompt: nothing to compare"
        )
    keys = [key for key in PAIRED if any(place[2] == key for place in shared)]
    prompts = set.union(*(found[0][place].keys() & found[1][place].keys() for place in shared))
    clusters = _clusters(runs, prompts)
    order = [(label, setting) for label in results[0].encoders for setting in results[0].settings]
    apart = {key: _differences(METRICS[key], found, clusters, shared, order) for key in keys}
    changed = list(_changed(runs, results, order))
    return {
        "names": names,
        "runs": [(name, run.spec.identity) for name, run in zip(names, runs, strict=True)],
        "headline": _headline(METRICS[keys[0]], names, apart[keys[0]]),
        "shared": len(prompts),
        "tables": [_table(METRICS[key], names, found, clusters, apart[key]) for key in keys],
        "changed": changed[:SHOWN],
        "more": max(0, len(changed) - SHOWN),
        "differs": runs[1].spec.differences(runs[0].spec),
    }


def _by_place(run: Run) -> dict[Place, Values]:
    values = prompt_values(run.records("images", ImageRecord), run.records("scores", ScoreRecord), SCORE_FIELDS)
    return {
        (encoder, setting_of(protocol, source, k), metric): each
        for ((encoder, protocol, source, k), metric), each in values.items()
        if protocol != "floor"
    }


def _clusters(runs: Sequence[Run], prompts: Collection[str]) -> Mapping[str, str]:
    """Which of the prompts fall together: as both runs say, or as the one does that says anything.

    Raises ValueError where they say different things: the interval of a difference would be neither's.
    """
    told = [{prompt: run.results.clusters.get(prompt, prompt) for prompt in prompts} for run in runs]
    mine, theirs = (_together(of) for of in told)
    apart = sum(mine[prompt] != theirs[prompt] for prompt in prompts)
    knows = [bool(run.results.clusters.keys() & set(prompts)) for run in runs]
    if apart and all(knows):
        raise ValueError(
            f"{runs[0].folder} and {runs[1].folder}: {apart} of {len(prompts)} prompts fall together with other prompts in one "
            "than in the other; run one again with the --clusters of the other"
        )
    return told[knows[1]]


def _together(of: Mapping[str, str]) -> dict[str, set[str]]:
    """Prompt -> all prompts of its cluster."""
    members: dict[str, set[str]] = {}
    for prompt, cluster in of.items():
        members.setdefault(cluster, set()).add(prompt)
    return {prompt: members[cluster] for prompt, cluster in of.items()}


def _differences(
    metric: Metric,
    found: Sequence[dict[Place, Values]],
    clusters: Mapping[str, str],
    shared: set[Place],
    order: Sequence[tuple[str, Setting]],
) -> dict[Place, Mean]:
    """The second run minus the first in every place that both have; their p values adjusted for each other."""
    places = [(label, setting, metric.key) for label, setting in order if (label, setting, metric.key) in shared]
    measured = [_interval(metric, clusters, *(each[place] for each in reversed(found))) for place in places]
    adjusted = holm([each.p for each in measured])
    return {place: _mean(each, p) for place, each, p in zip(places, measured, adjusted, strict=True)}


def _table(
    metric: Metric,
    names: Sequence[str],
    found: Sequence[dict[Place, Values]],
    clusters: Mapping[str, str],
    apart: Mapping[Place, Mean],
) -> sections.Matrix:
    lines = []
    for place, difference in apart.items():
        means = [sections.mean_cell(_mean(_interval(metric, clusters, each[place])), metric) for each in found]
        cells = [*means, sections.difference_cell(difference, metric)]
        lines.append((f"{place[0]}, {place[1].label}", cells, sample_said([difference])))
    unit = ", in points" if metric.unit == "%" else ""
    attacked = [False] if metric.bounds and any(setting.k for _, setting, _ in apart) else []
    notes = [attack_note(attacked, higher_is_better=metric.higher_is_better)] if attacked else []
    return sections.Matrix(metric.title, metric.meaning, [*names, f"difference{unit}"], lines, notes)


def _interval(metric: Metric, clusters: Mapping[str, str], values: Values, against: Values | None = None) -> Interval:
    """Of the mean, or of the mean difference over the prompts of both."""
    shared = values.keys() if against is None else values.keys() & against.keys()
    mine = {prompt: values[prompt] for prompt in shared}
    theirs = None if against is None else {prompt: against[prompt] for prompt in shared}
    of = {prompt: clusters.get(prompt, prompt) for prompt in shared}
    return mean_interval(mine, theirs, clusters=of, share=is_share(metric.key))


def _mean(found: Interval, p_adjusted: float | None = None) -> Mean:
    known = found.ci_low == found.ci_low  # not of one cluster
    low, high = (found.ci_low, found.ci_high) if known else (None, None)
    return Mean(found.mean, low, high, found.n, found.clusters, p_adjusted)


def _headline(metric: Metric, names: Sequence[str], apart: Mapping[Place, Mean]) -> str:
    """How many places changed, by the leading metric."""
    better, worse = list[str](), list[str]()
    for place, difference in apart.items():
        tone = sections.difference_cell(difference, metric).tone
        if tone:
            (better if tone == "good" else worse).append(f"{place[0]}, {place[1].label}")
    if not better and not worse:
        return f"{names[1]} against {names[0]}: no clear difference in {metric.title.lower()} in {len(apart)} settings"
    parts = [f"{what} in {len(some)}" for what, some in (("better", better), ("worse", worse)) if some]
    return f"{names[1]} against {names[0]}: {metric.title.lower()} {' and '.join(parts)} of {len(apart)} settings"


def _changed(
    runs: Sequence[Run], results: Sequence[Results], order: Sequence[tuple[str, Setting]]
) -> Iterator[Changed]:
    """Images that are right in one run and wrong in the other, by encoder and setting."""
    rows: list[dict[str, GalleryRow]] = [
        {row.prompt_id: row for row in gallery_rows(run, baseline=each.baseline)}
        for run, each in zip(runs, results, strict=True)
    ]
    for label, setting in order:
        for prompt_id, row in rows[0].items():
            cells = [each[prompt_id].cells.get((label, setting)) for each in rows if prompt_id in each]
            if len(cells) == 2 and {cell.correct for cell in cells if cell is not None} == {True, False}:
                images = [sections.image(cell, row.prompt) for cell in cells]
                yield Changed(row.prompt, label, setting.label, images)
