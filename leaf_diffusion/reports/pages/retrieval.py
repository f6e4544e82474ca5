"""The page of `leaf-diffusion retrieve`: views of its records and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leaf_diffusion.reports.metrics import CUTS, TARGET_ABOVE, recall, target_recall
from leaf_diffusion.reports.pages.experiment import Example, ExampleCell, Page, Section, curve, line_label, matrices
from leaf_diffusion.reports.results import Metric
from leaf_diffusion.runs import ResultRow
from leaf_diffusion.runs.experiment_records import Ranked, Searched, Shown
from leaf_diffusion.runs.images import recorded_images
from leaf_diffusion.text.visible import isolated

SHOWN = 6
"""Captions with images on the page."""
GOALS = {
    "drift": "moves the caption away from its clean embedding, and knows no image",
    "margin": "knows the images, lifts the best wrong one over the right one and stops once it stands first",
    "toward": "moves the caption towards each target",
}


def retrieval_page(
    rows: Sequence[ResultRow],
    ranked: Sequence[Ranked],
    shown: Sequence[Shown],
    counts: Mapping[str, Any],
    encoders: Sequence[str],
    goals: Sequence[str],
    ks: Sequence[int],
    folder: Path,
) -> Page:
    """Recall, clean and attacked; targets; images before and after."""
    recalls = [recall(cut) for cut in CUTS]
    about = (
        "Adaptive: each encoder is attacked on itself; transfer: the attacks found on the first encoder, for all the same. "
        + " ".join(f"“{goal}” {GOALS[goal]}." for goal in goals)
    )
    untargeted = [row for row in rows if row.metric in {metric.key for metric in recalls}]
    sections = [
        Section(
            "Recall",
            about,
            matrices(untargeted, recalls, label=_label, more=["captions"]),
            _over_k(rows, recalls[0], encoders),
        )
    ]
    if "toward" in goals:
        metrics = [TARGET_ABOVE, target_recall(max(CUTS))]
        aimed = [row for row in rows if row.metric in {metric.key for metric in metrics}]
        about = (
            "For clean captions this is what chance gives. The targets: "
            + "; ".join(map(isolated, counts["target_captions"]))
            + "."
        )
        sections.append(Section("Targets", about, matrices(aimed, metrics)))
    examples = _examples(ranked, shown, encoders, goals, ks, folder)
    about = f"The first images found, the most similar first; attacks with k={max(ks)}, each encoder's own."
    sections.append(Section("Images before and after", about, examples=examples))
    facts = {"images": str(counts["images"]), "attacked captions": str(counts["queries"])}
    notes = [
        f"{counts['unchanged']} of {counts['attacked']} attacks left the caption as it is: they found nothing better, or its "
        f"image did not stand first anyway; "
        f"{counts['truncated']} results are cut at the context length.",
        f"{counts['captions_of_several_images']} images were left out because several have the same caption. A caption "
        "has one right image, its own: where another one fits as well, finding it counts as wrong.",
    ]
    return Page("text-to-image retrieval", _headline(rows, recalls[0], ks), facts, encoders, sections, notes)


def shown_search(searches: Sequence[Searched], goal: str, ks: Sequence[int]) -> Searched:
    """The search that the page shows: the clean one, or the encoder's own attack at the largest k, at the first target."""
    if goal == "clean":
        return next(row for row in searches if row.protocol == "clean")
    return next(row for row in searches if (row.protocol, row.goal, row.k) == ("adaptive", goal, max(ks)))


def _label(row: ResultRow) -> str:
    return "clean, all captions" if row.captions == "all" else line_label(row)


def _over_k(rows: Sequence[ResultRow], metric: Metric, encoders: Sequence[str]) -> list[tuple[str, str]]:
    plots: list[tuple[str, str]] = []
    rows = [row for row in rows if row.captions == "attacked"]
    for attack in dict.fromkeys(row.attack for row in rows if row.attack):
        mine = [row for row in rows if row.protocol == "clean" or row.attack == attack]
        mine = [row for row in mine if row.protocol != "transfer"]
        name = f"recall-{len(plots)}"
        svg = curve(mine, metric, encoders, x=lambda row: float(row.k or 0), xlabel="edited characters k", name=name)
        plots.append((f"{attack}, each encoder's own", svg))
    return plots


def _examples(
    ranked: Sequence[Ranked],
    shown: Sequence[Shown],
    encoders: Sequence[str],
    goals: Sequence[str],
    ks: Sequence[int],
    folder: Path,
) -> list[Example]:
    images: dict[tuple[str, int, str], list[Path]] = {}
    for one in shown:
        images.setdefault((one.encoder, one.query, one.goal), []).extend(recorded_images(folder, one))
    by_pair = {(record.encoder, record.number): record for record in ranked}
    examples = []
    for query in dict.fromkeys(query for label, query, _ in images if label):
        caption = by_pair[encoders[0], query].caption
        cells = [ExampleCell("the right image", images=images["", query, ""])]
        for label in encoders:
            for goal in ("clean", *goals):
                row = shown_search(by_pair[label, query].searches, goal, ks)
                note = f"{goal}: the right image is number {row.rank}"
                if row.target is not None:
                    note += f", the target's number {row.target_ranks[0]}"
                verdict = "right" if row.rank == 1 else "wrong"
                cells.append(ExampleCell(label, row.perturbed, caption, images[label, query, goal], verdict, note))
        examples.append(Example(caption, cells))
    return examples


def _headline(rows: Sequence[ResultRow], metric: Metric, ks: Sequence[int]) -> str:
    mine = [row for row in rows if row.metric == metric.key and row.baseline is None]
    mine = [row for row in mine if row.captions == "attacked"]
    attacked = [row for row in mine if row.protocol == "adaptive" and row.k == min(ks)]
    attacked = [row for row in attacked if row.attack == attacked[0].attack]
    clean = {row.encoder: row.mean for row in mine if row.protocol == "clean"}
    said = ", ".join(
        f"{isolated(row.encoder)} {metric.show(clean[row.encoder])} to {metric.show(row.mean)}" for row in attacked
    )
    return f"{metric.title} from clean to {line_label(attacked[0])}: {said}"
