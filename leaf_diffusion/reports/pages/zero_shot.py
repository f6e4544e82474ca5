"""The page of `leaf-diffusion zero-shot-text`: views of its records and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from leaf_diffusion.reports.metrics import OVER_QUERIES, SENSITIVITY, TEXT_ACCURACY
from leaf_diffusion.reports.pages.experiment import Example, ExampleCell, Page, Section, curve, matrices, means_said
from leaf_diffusion.runs import ResultRow
from leaf_diffusion.runs.experiment_records import ClassifiedText

SHOWN = 8
"""Texts with examples on the page."""


def zero_shot_page(
    rows: Sequence[ResultRow],
    records: Sequence[ClassifiedText],
    counts: Mapping[str, object],
    encoders: Sequence[str],
    task: str,
) -> Page:
    """Accuracy under the exact worst edit, over k, over queries; sensitivity; examples."""
    sections = [Section("Accuracy", "Each encoder is attacked on itself. “exhaustive” scored every allowed single edit of "
                        "the alphabet.", matrices(rows, [TEXT_ACCURACY]),
                        _over_k(rows, encoders))]  # fmt: skip
    if any(row.metric == OVER_QUERIES.key for row in rows):
        sections.append(_over_queries(rows, encoders))
    if any(row.metric == SENSITIVITY.key for row in rows):
        told = matrices(rows, [SENSITIVITY], label=lambda row: "minimal pairs")
        sections.append(Section("Sensitivity", "Mere deafness would pass for robustness.", told))
    sections.append(
        Section("Examples", "Texts on which the encoders differ first.", examples=_examples(records, encoders))
    )
    facts = {"task": task, "texts": str(counts["texts"]), "classes": str(counts["classes"])}
    note = f"{counts['truncated']} attacked texts are cut at the context length."
    return Page("zero-shot text classification", _headline(rows), facts, encoders, sections, [note])


def _over_k(rows: Sequence[ResultRow], encoders: Sequence[str]) -> list[tuple[str, str]]:
    plots: list[tuple[str, str]] = []
    for attack, rule in dict.fromkeys((row.attack, row.constraint) for row in rows if (row.k or 0) > 1):
        mine = [row for row in rows if row.attack is None or (row.attack, row.constraint) == (attack, rule)]
        svg = curve(mine, TEXT_ACCURACY, encoders, x=lambda row: row.k or 0, xlabel="edits k", name=f"k-{len(plots)}")
        plots.append((f"{attack}, {rule}", svg))
    return plots


def _over_queries(rows: Sequence[ResultRow], encoders: Sequence[str]) -> Section:
    mine = [row for row in rows if row.metric == OVER_QUERIES.key]
    rules = list(dict.fromkeys(row.constraint or "none" for row in mine))
    plots = [
        (rule, curve([row for row in mine if (row.constraint or "none") == rule], OVER_QUERIES, encoders, x=lambda row: row.queries or 0,
                     xlabel="random edits", name=f"queries-{i}", logarithmic=True))
        for i, rule in enumerate(rules)
    ]  # fmt: skip
    tables = matrices(
        mine,
        [OVER_QUERIES],
        more=["queries"],
        label=lambda row: f"{row.queries:,} random edits, {row.constraint}",
    )
    about = "How many queries an attacker needs who does not search but draws edits at random, all of them different."
    return Section("Queries", about, tables[:1], plots)


def _examples(records: Sequence[ClassifiedText], encoders: Sequence[str]) -> list[Example]:
    by_number: dict[int, dict[str, ClassifiedText]] = {}
    for record in records:
        by_number.setdefault(record.number, {})[record.encoder] = record
    order = sorted(by_number, key=lambda n: (len({_held(each) for each in by_number[n].values()}) == 1, n))
    examples = []
    for number in order[:SHOWN]:
        cells = []
        for name in encoders:
            record = by_number[number][name]
            edits = record.exact[0] if record.exact else None
            worst = record.attacks[0].perturbed if edits is None else edits.worst
            note = "" if edits is None else f"{edits.flips:,} of {edits.edits:,} edits flip it"
            cells.append(
                ExampleCell(name, worst, record.text, verdict="right" if _held(record) else "wrong", note=note)
            )
        examples.append(Example(by_number[number][encoders[0]].text, cells))
    return examples


def _held(record: ClassifiedText) -> bool:
    """Under every edit, and under the first search."""
    flipped = any(each.flips for each in record.exact) or any(not each.held for each in record.attacks[:1])
    return record.right and not flipped


def _headline(rows: Sequence[ResultRow]) -> str:
    attacked = [row for row in rows if row.metric == TEXT_ACCURACY.key and row.attack and row.baseline is None]
    first = attacked[0]
    place = [
        row for row in attacked if all(row.column(name) == first.column(name) for name in ("attack", "k", "constraint"))
    ]
    what = "the exact worst single edit" if first.exact and first.k == 1 else f"{first.attack}, k={first.k}"
    return f"Right under {what}: {means_said(place, TEXT_ACCURACY)}"
