"""The page of `leaf-diffusion invert`: views of its records and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from leaf_diffusion.metrics.bounds import INVERTED
from leaf_diffusion.reports.metrics import BLEU, COSINE, TOKENS_BACK, TOKENS_IN_PLACE, WORDS_BACK
from leaf_diffusion.reports.pages.experiment import Example, ExampleCell, Page, Section, matrices, means_said
from leaf_diffusion.runs import ResultRow
from leaf_diffusion.runs.experiment_records import Inverted

NO_BLEU = "BLEU is left out: it needs the package sacrebleu (pip install sacrebleu)."
SHOWN = 12
"""Captions with examples on the page."""


def inversion_page(
    rows: Sequence[ResultRow], records: Sequence[Inverted], encoders: Sequence[str], facts: Mapping[str, str]
) -> Page:
    """What was read back, in figures and in texts."""
    captions = list(dict.fromkeys(record.prompt for record in records))
    examples = []
    for caption in captions[:SHOWN]:
        mine = [record for record in records if record.prompt == caption]
        examples.append(Example(caption, [ExampleCell(each.encoder, each.found, note=_note(each)) for each in mine]))
    metrics = [COSINE, WORDS_BACK, TOKENS_BACK, TOKENS_IN_PLACE, BLEU]
    about = "Each encoder's own embedding of a caption is inverted; as many tokens are free as the caption has. "
    about += INVERTED
    sections = [
        Section("Read back", about, matrices(rows, metrics, label=lambda _: f"{facts['steps']} steps")),
        Section("Examples", "The captions, and what was found.", examples=examples),
    ]
    notes = [
        f"{sum(record.truncated for record in records)} captions are cut at the context length. The best text was met at "
        f"step {sum(record.step for record in records) / len(records):.0f} on average."
    ]
    if all(record.bleu is None for record in records):
        notes.append(NO_BLEU)
    headline = f"Words given back: {means_said(rows, WORDS_BACK)}"
    return Page("embedding inversion", headline, {"captions": str(len(captions)), **facts}, encoders, sections, notes)


def _note(record: Inverted) -> str:
    return f"cosine {record.cosine:.3f}, words {WORDS_BACK.show(record.word_accuracy)}"
