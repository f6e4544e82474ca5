"""The page of `leaf-diffusion both-domains`: the paper's table, differences, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from leaf_diffusion.reports.metrics import BOTH_TEXT_ACCURACY, IMAGE_ACCURACY, attack_notes
from leaf_diffusion.reports.pages.experiment import Example, ExampleCell, Page, Section, line_label, matrices
from leaf_diffusion.reports.results import Metric, sample_said
from leaf_diffusion.reports.sections import Matrix, mean_cell
from leaf_diffusion.runs import ResultRow
from leaf_diffusion.runs.experiment_records import PairText
from leaf_diffusion.text.visible import isolated

SHOWN = 6
"""Texts with examples on the page."""


def both_page(
    rows: Sequence[ResultRow],
    records: Sequence[PairText],
    counts: Mapping[str, int],
    labels: Sequence[str],
    eps: float,
    k: int,
) -> Page:
    """`labels`: "image tower + text tower", the originals first."""
    about = (
        f"A row is an image tower + a text tower. Attacked images: APGD (cross-entropy, then DLR) within {eps:g}/255; attacked "
        f"texts: {records[0].attack}, k={k}; each row is attacked on itself."
    )
    sections = [
        Section("Both domains", about, [the_table(rows, labels)]),
        Section("Differences", "Paired: every row saw the same images and texts.",
                [m for m in matrices(rows, [IMAGE_ACCURACY, BOTH_TEXT_ACCURACY], label=_line, more=("eps",)) if "−" in "".join(m.columns)]),
        Section("Examples", "Attacked texts, the first on which the rows differ.", examples=_examples(records, labels)),
    ]  # fmt: skip
    facts = {"images": str(counts["images"]), "texts": str(counts["texts"]), "eps": f"{eps:g}/255", "k": str(k)}
    note = f"{counts['truncated']} attacked texts are cut at the context length."
    return Page("robustness in both domains", _headline(rows, labels), facts, labels, sections, [note])


def the_table(rows: Sequence[ResultRow], labels: Sequence[str]) -> Matrix:
    """The four columns of the paper's table, a line a pair of towers."""
    columns = [("image, clean", IMAGE_ACCURACY, "clean"), ("image, attacked", IMAGE_ACCURACY, "adaptive"),
               ("text, clean", BOTH_TEXT_ACCURACY, "clean"), ("text, attacked", BOTH_TEXT_ACCURACY, "adaptive")]  # fmt: skip
    lines = []
    for label in labels:
        cells = [_mean(rows, label, metric, protocol) for _, metric, protocol in columns]
        shown = [mean_cell(row, metric) for row, (_, metric, _) in zip(cells, columns, strict=True)]
        lines.append((isolated(label), shown, ", ".join(dict.fromkeys(sample_said([row]) for row in cells if row))))
    meaning = "Zero-shot accuracy, with 95% intervals; n: images, texts"
    notes = attack_notes((row for row in rows if row.baseline is None), IMAGE_ACCURACY)
    return Matrix("Image tower + text tower", meaning, [title for title, _, _ in columns], lines, notes)


def _mean(rows: Sequence[ResultRow], label: str, metric: Metric, protocol: str) -> ResultRow | None:
    return next((row for row in rows if row.encoder == label and row.metric == metric.key
                 and row.protocol == protocol and row.baseline is None), None)  # fmt: skip


def _line(row: ResultRow) -> str:
    return f"{row.attack}, eps {row.eps:g}/255" if row.eps else line_label(row)


def _headline(rows: Sequence[ResultRow], labels: Sequence[str]) -> str:
    said = []
    for label in (labels[0], labels[-1]):
        image, text = (_mean(rows, label, metric, "adaptive") for metric in (IMAGE_ACCURACY, BOTH_TEXT_ACCURACY))
        if image and text:
            said.append(f"{isolated(label)} {IMAGE_ACCURACY.show(image.mean)} and {BOTH_TEXT_ACCURACY.show(text.mean)}")
    return f"Right under attack, images and texts: {'; '.join(said)}"


def _examples(records: Sequence[PairText], labels: Sequence[str]) -> list[Example]:
    by_text: dict[int, dict[str, PairText]] = {}
    for record in records:
        by_text.setdefault(record.number, {})[record.row] = record
    order = sorted(by_text, key=lambda i: len({record.held for record in by_text[i].values()}) < 2)
    found = []
    for mine in (by_text[number] for number in order[:SHOWN]):
        cells = []
        for label in labels:
            record = mine[label]
            verdict, note = "right" if record.held else "wrong", "" if record.right else "wrong untouched"
            cells.append(ExampleCell(label, record.perturbed, record.prompt, verdict=verdict, note=note))
        found.append(Example(mine[labels[0]].prompt, cells))
    return found
