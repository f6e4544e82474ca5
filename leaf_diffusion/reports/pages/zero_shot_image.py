"""The page of `leaf-diffusion zero-shot-image`: views of its records and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from leaf_diffusion.reports.metrics import IMAGE_ACCURACY
from leaf_diffusion.reports.pages.experiment import (
    Example,
    ExampleCell,
    Page,
    Section,
    curve,
    matrices,
    means_said,
)
from leaf_diffusion.runs import ResultRow
from leaf_diffusion.runs.experiment_records import ClassifiedImage
from leaf_diffusion.runs.images import recorded_images
from leaf_diffusion.text.visible import isolated

ABOUT = "Attacks on a tower itself, and images found on one tower shown to the other."
SHOWS = "The image, then attacked, then what was added (gray: nothing; black and white: eps). Attack:"


def zero_shot_image_page(
    rows: Sequence[ResultRow],
    records: Sequence[ClassifiedImage],
    encoders: Sequence[str],
    classes: Sequence[str],
    folder: Path,
    facts: Mapping[str, str],
) -> Page:
    """Accuracy of each image tower, over eps where there are several, and images of the last attack at the first eps."""
    own = [row for row in rows if row.protocol in ("clean", "adaptive")]
    attacks = list(dict.fromkeys(row.attack for row in own if row.attack))
    radii = list(dict.fromkeys(row.eps for row in own if row.attack and row.eps is not None))
    attack, eps = attacks[-1], radii[0]
    plots = [
        (
            name,
            curve(
                [row for row in own if row.attack in (None, name)],
                IMAGE_ACCURACY,
                encoders,
                x=lambda row: float(row.eps or 0),
                xlabel="eps, of 255",
                name=f"image-{name}",
            ),
        )
        for name in attacks
        if len(radii) > 1
    ]
    cells = [_example(record, encoders, classes, folder, attack, eps) for record in records if record.images]
    sections = [
        Section("Accuracy", ABOUT, matrices(rows, [IMAGE_ACCURACY], label=_line, more=("eps",)), plots),
        Section("Images", f"{SHOWS} {attack}, eps {eps:g}/255.", examples=cells),
    ]
    last = [row for row in own if row.attack == attack and row.eps == eps]
    headline = f"Right under {attack}, eps {eps:g}/255: {means_said(last, IMAGE_ACCURACY)}"
    named = {"images": str(len(records)), "classes": str(len(classes)), **facts}
    return Page("zero-shot image classification", headline, named, encoders, sections)


def _example(
    record: ClassifiedImage, encoders: Sequence[str], classes: Sequence[str], folder: Path, attack: str, eps: float
) -> Example:
    cells, files = [], recorded_images(folder, record)
    for place, name in enumerate(encoders):
        shown = files[3 * place : 3 * place + 3]
        (said,) = (each.said for each in record.attacked if each.encoder == each.source == name
                   and (each.attack, each.eps) == (attack, eps))  # fmt: skip
        note = f"clean: {isolated(classes[record.said[name]])}; attacked: {isolated(classes[said])}"
        verdict = "right" if said == record.label else "wrong"
        cells.append(ExampleCell(name, images=shown, verdict=verdict, note=note))
    return Example(classes[record.label], cells)


def _line(row: ResultRow) -> str:
    """ "clean", "apgd on itself, eps 4/255"."""
    if row.protocol == "clean":
        return "clean"
    against = "on itself" if row.protocol == "adaptive" else f"on {isolated(row.source or '')}"
    return f"{row.attack} {against}, eps {row.eps:g}/255"
