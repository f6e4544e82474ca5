"""The page of `leaf-diffusion swap-cost`: views of its records and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from leaf_diffusion.reports.metrics import STYLE
from leaf_diffusion.reports.pages.experiment import Example, ExampleCell, Page, Section, matrices
from leaf_diffusion.reports.results import METRICS
from leaf_diffusion.reports.sections import difference_cell
from leaf_diffusion.runs import ResultRow
from leaf_diffusion.runs.experiment_records import SwapImage, SwapScore
from leaf_diffusion.runs.images import recorded_images
from leaf_diffusion.runs.results import MeasuredCondition
from leaf_diffusion.text.visible import isolated

SHOWN = 4
"""Prompts with images on the page, a condition."""
SAME_NOISE = "difference from the first encoder's image of the same prompt and noise"
SHOWN_METRICS = (
    replace(METRICS["scene_accuracy"], meaning=METRICS["scene_accuracy"].meaning.replace("clean ", "plain ")),
    STYLE,
    replace(METRICS["clip_score"], meaning=METRICS["clip_score"].meaning.replace("clean ", "plain ")),
    replace(METRICS["drift"], title="Pixels moved", meaning=f"{SAME_NOISE}, RMSE of pixels in 0 to 1"),
    replace(METRICS["drift_features"], title="Features moved", meaning=f"{SAME_NOISE}, 1 − cosine of judge's features"),
)
ABOUT = (
    "No prompt is attacked here. Every encoder gets the same prompts, noise and files. “Another noise” is {first} "
    "alone, the same prompt drawn from a second noise: how far images lie apart when nothing was swapped."
)


def swap_cost_page(
    rows: Sequence[ResultRow],
    images: Sequence[SwapImage],
    scores: Sequence[SwapScore],
    conditions: Sequence[MeasuredCondition],
    labels: Sequence[str],
    folder: Path,
    facts: Mapping[str, str],
    left_out: Sequence[str],
) -> Page:
    """A table a metric, conditions down and encoders across; images of every condition."""
    titles = {condition.key: condition.title for condition in conditions}

    def line(row: ResultRow) -> str:
        return titles[row.condition or ""] + (", another noise" if row.protocol == "floor" else "")

    tables = matrices(rows, SHOWN_METRICS, label=line, more=["condition"])
    sections = [Section("Figures", ABOUT.format(first=isolated(labels[0])), tables)]
    for condition in conditions:
        mine = [
            (image, score.scores)
            for image, score in zip(images, scores, strict=True)
            if image.condition == condition.key
        ]
        about = f"{condition.about} {len(condition.prompts)} prompts"
        about += "".join(f"; {isolated(label)} cut {n}" for label, n in condition.truncated.items() if n)
        about += ". Prompts on which the encoders' verdicts differ come first."
        examples = [_example(condition, number, mine, folder) for number in _telling(condition, mine)]
        title = condition.title[:1].upper() + condition.title[1:]
        sections.append(Section(title, about, examples=examples, side_by_side=True))
    notes = [f"{sentence}." for sentence in left_out]
    return Page("what a swap costs on clean prompts", _headline(rows, titles, labels), facts, labels, sections, notes)


def _headline(rows: Sequence[ResultRow], titles: Mapping[str, str], labels: Sequence[str]) -> str:
    """What the first robust encoder costs by the leading metric, condition by condition where it is clear."""
    first, robust = labels[:2]
    swap = f"{isolated(robust)} in place of {isolated(first)}"
    metric = next(metric for metric in SHOWN_METRICS if any(row.metric == metric.key for row in rows))
    if metric.key.startswith("drift"):
        return f"{swap}: how far the images move"
    pair = {
        row.condition: row
        for row in rows
        if row.condition is not None and (row.metric, row.encoder, row.baseline) == (metric.key, robust, first)
    }
    cells = {key: difference_cell(row, metric) for key, row in pair.items()}
    said = [f"{titles[key]} {cell.text}" for key, cell in cells.items() if cell.tone]
    what = "right images" if metric.key == "scene_accuracy" else f"the images' {metric.title}s"
    clear = f"differ clearly in {len(said)} of {len(cells)} conditions: {', '.join(said)}"
    return f"{swap}: {what} {clear if said else 'differ clearly in no condition'}"


def _telling(condition: MeasuredCondition, mine: Sequence[tuple[SwapImage, Mapping[str, float]]]) -> list[int]:
    """The numbers of the prompts to show: those that the encoders differ on first, otherwise in their order."""
    verdicts: dict[int, set[float]] = {number: set() for number in range(len(condition.prompts))}
    for image, scores in mine:
        if "scene_accuracy" in scores:
            verdicts[image.number].add(scores["scene_accuracy"])
    return sorted(verdicts, key=lambda number: len(verdicts[number]) < 2)[:SHOWN]


def _example(
    condition: MeasuredCondition, number: int, mine: Sequence[tuple[SwapImage, Mapping[str, float]]], folder: Path
) -> Example:
    """Images of one prompt: every encoder, then the first with another noise."""
    cells, asked = [], condition.prompts[number]
    for image, scores in mine:
        if image.number == number:
            verdict = {1.0: "right", 0.0: "wrong", None: ""}[scores.get("scene_accuracy")]
            note = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in scores.items())
            label = image.encoder + (", another noise" if image.protocol == "floor" else "")
            cells.append(ExampleCell(label, images=recorded_images(folder, image), verdict=verdict, note=note))
    note = "" if asked.negative is None else f"negative prompt: {asked.negative}"
    return Example(asked.given, cells, note)
