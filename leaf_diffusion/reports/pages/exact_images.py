"""The page of `leaf-diffusion exact-images`: views of its records and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from leaf_diffusion.reports.metrics import CLIP_ACCURACY, EXACT, EXACT_AT_MOST, ROWS, UNDONE
from leaf_diffusion.reports.pages.experiment import Example, ExampleCell, Page, Section, matrices
from leaf_diffusion.reports.results import METRICS
from leaf_diffusion.runs import ResultRow
from leaf_diffusion.runs.experiment_records import SettledPrompt
from leaf_diffusion.runs.images import recorded_images
from leaf_diffusion.text.visible import isolated

SHOWN = 16
"""Prompts with images on the page, at most."""
ABOUT = (
    "Every allowed single edit of a prompt was read; edits that are read alike give one image. One image of each reading was "
    "drawn from the prompt's own noise, those first that move the embedding most, until one was wrong. “Largest drift” is the "
    "image of the edit that moves the embedding most: what an exhaustive attack finds, and an upper bound."
)
IMAGES = (
    "The clean image, and behind it the first wrong one with its edit. Prompts on which the encoders differ come first."
)


def exact_images_page(
    rows: Sequence[ResultRow],
    records: Sequence[SettledPrompt],
    encoders: Sequence[str],
    folder: Path,
    facts: Mapping[str, str],
) -> Page:
    """The shares, what became of each encoder's prompts, and images."""
    tables = matrices(rows, [EXACT, EXACT_AT_MOST, METRICS["scene_accuracy"], CLIP_ACCURACY, UNDONE, ROWS], label=_line)
    prompts: dict[str, list[SettledPrompt]] = {}
    for record in records:
        if record.seed_index == 0:
            prompts.setdefault(record.prompt, []).append(record)
    order = sorted(prompts, key=lambda prompt: len({record.held for record in prompts[prompt]}) == 1)
    examples = [Example(prompt, [_cell(each, folder) for each in prompts[prompt]]) for prompt in order[:SHOWN]]
    sections = [
        Section("Figures", ABOUT, tables, sentences=[_said(label, records) for label in encoders]),
        Section("Images", IMAGES, examples=examples),
    ]
    headline = f"Right under every allowed edit: {', '.join(_share(rows, label) for label in encoders)}"
    return Page("exact images", headline, facts, encoders, sections)


def _share(rows: Sequence[ResultRow], label: str) -> str:
    """ "leaf 22%", or "leaf 22% to 30%" where prompts are not decided."""
    mine = {row.metric: EXACT.show(row.mean) for row in rows if row.encoder == label and row.baseline is None}
    ends = dict.fromkeys((mine[EXACT.key], mine.get(EXACT_AT_MOST.key, mine[EXACT.key])))
    return f"{isolated(label)} {' to '.join(ends)}"


def _line(row: ResultRow) -> str:
    if row.protocol == "clean":
        return "clean"
    return f"{'largest drift' if row.attack == 'exhaustive' else 'every edit'}, {row.constraint}"


def _said(label: str, records: Sequence[SettledPrompt]) -> str:
    """ "leaf: of 50, 12 held, 35 fell (9 of them not under the largest drift), 3 are not decided; 31,204 images drawn"."""
    mine = [record for record in records if record.encoder == label]
    fell, undecided = [each for each in mine if each.held is False], sum(each.held is None for each in mine)
    late = sum(each.right and each.place > 1 for each in fell)
    return (
        f"{isolated(label)}: of {len(mine)} prompts {len(mine) - len(fell) - undecided} held, {len(fell)} fell ({late} of them "
        f"right clean and under the largest drift), {undecided} not decided; {sum(each.drawn for each in mine):,} images drawn."
    )


def _cell(record: SettledPrompt, folder: Path) -> ExampleCell:
    if record.held is None:
        note = f"not decided: {record.drawn - 1:,} of {record.rows:,} readings drawn, all right"
    elif record.held:
        note = f"all {record.rows:,} readings of {record.edits:,} edits right"
    else:
        note = "" if record.right else "the clean image is wrong; "
        note += f"reading {record.place:,} of {record.rows:,} by drift is wrong" if record.place else ""
    verdict = {True: "right", False: "wrong", None: ""}[record.held]
    text = record.prompt if record.wrong is None else record.wrong
    return ExampleCell(record.encoder, text, record.prompt, recorded_images(folder, record), verdict, note)
