"""The page of `leaf-diffusion textfare`: views of its records and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from leaf_diffusion.reports.metrics import RELATIVE_TEXTFARE, TEXTFARE
from leaf_diffusion.reports.pages.experiment import (
    Example,
    ExampleCell,
    Page,
    Section,
    curve,
    line_label,
    matrices,
    means_said,
)
from leaf_diffusion.runs import ResultRow
from leaf_diffusion.runs.experiment_records import Losses

SHOWN = 4
"""Prompts with examples on the page."""


def textfare_page(
    rows: Sequence[ResultRow],
    records: Sequence[Losses],
    counts: Mapping[str, int],
    encoders: Sequence[str],
    facts: Mapping[str, str],
) -> Page:
    """Losses of every attack, over k where there are several, and examples."""
    attacks = list(dict.fromkeys(row.attack for row in rows if row.attack))
    ks = {row.k for row in rows if row.k}
    plots = [
        (
            name,
            curve(
                [row for row in rows if row.attack in (None, name)],
                RELATIVE_TEXTFARE,
                encoders,
                x=lambda row: float(row.k or 0),
                xlabel="edited characters k",
                name=f"textfare-{name}",
            ),
        )
        for name in attacks
        if len(ks) > 1
    ]
    about = "Each encoder is attacked on its own loss; the anchor is the first encoder's clean embedding."
    sections = [
        Section("Losses", about, matrices(rows, [RELATIVE_TEXTFARE, TEXTFARE]), plots),
        Section("Examples", "The last attack of the list, prompt by prompt.", examples=_examples(records)),
    ]
    note = (
        f"{counts['unchanged']} of {counts['attacked']} attacks found nothing better than the clean prompt, "
        f"{counts['truncated']} results are cut at the context length."
    )
    last = [row for row in rows if row.metric == RELATIVE_TEXTFARE.key and row.attack == attacks[-1]]
    worst = [row for row in last if row.k == min(ks)]
    headline = f"Relative TextFARE loss under {line_label(worst[0])}: {means_said(worst, RELATIVE_TEXTFARE)}"
    return Page("TextFARE loss, clean and attacked", headline, facts, encoders, sections, [note])


def _examples(records: Sequence[Losses]) -> list[Example]:
    found = []
    for prompt in list(dict.fromkeys(record.prompt for record in records))[:SHOWN]:
        cells = []
        for record in records:
            if record.prompt == prompt:
                row = record.attacked[-1]
                note = f"{row.attack}, k={row.k}: loss {row.score:.2f}, clean {record.clean:.2f}"
                cells.append(ExampleCell(record.encoder, row.perturbed, prompt, note=note))
        found.append(Example(prompt, cells))
    return found
