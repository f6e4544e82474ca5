"""Images side by side: every encoder, clean and attacked, the prompts that hurt the baseline most first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rapidfuzz.distance import Levenshtein

from leaf_diffusion.images import read_image
from leaf_diffusion.reports.results import Results, Setting, setting_of
from leaf_diffusion.runs import Run, load_run
from leaf_diffusion.runs.images import is_recorded
from leaf_diffusion.runs.records import AttackRecord, ImageRecord, ScoreRecord
from leaf_diffusion.text.visible import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class GalleryCell:
    """One image. prompt: what was asked; given: what the encoder read after its defence; image: None when damaged;
    shattered: the pieces into which the tokenizer breaks each word that the attack made."""

    encoder: str
    setting: Setting
    prompt: str
    given: str
    image: Path | None
    correct: bool | None
    clip_score: float | None
    drift: float | None
    shattered: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class GalleryRow:
    """One clean prompt and its images of the first noise. damage: how much the baseline lost, the sorting key;
    number: its place in the run."""

    prompt_id: str
    prompt: str
    number: int
    cells: dict[tuple[str, Setting], GalleryCell]
    damage: tuple[float, float, float]

    def gain(self, robust: str, baseline: str, setting: Setting) -> tuple[float, float]:
        """How much better the robust encoder's attacked image is: right minus right, then CLIPScore or less drift."""
        mine, theirs = self.cells.get((robust, setting)), self.cells.get((baseline, setting))
        if mine is None or theirs is None or mine.image is None or theirs.image is None:
            return (-2.0, 0.0)
        clean = self.cells.get((robust, Setting("clean")))
        held = 0.25 if clean is not None and clean.correct else 0.0
        right = float(bool(mine.correct)) - float(bool(theirs.correct)) + held
        return (right, (theirs.drift or 0.0) - (mine.drift or 0.0))


def gallery_rows(run: Run | str | Path, *, baseline: str | None = None) -> list[GalleryRow]:
    """One row a prompt, largest damage to the baseline first (right images lost, then CLIPScore lost, then drift).

    baseline: label of an encoder; default the first recorded one.
    """
    run = run if isinstance(run, Run) else load_run(run)
    scores = {record.id: record for record in run.records("scores", ScoreRecord)}
    broken = {
        (r.source, r.k, r.prompt_id): tuple(map(tuple, r.shattered)) for r in run.records("attacks", AttackRecord)
    }
    shown = [r for r in run.records("images", ImageRecord) if r.seed_index == 0 and r.protocol != "floor"]
    if not shown:
        return []
    baseline = baseline or shown[0].encoder
    whole: dict[str, Path | None] = {}
    prompts: dict[str, list[ImageRecord]] = {}
    for record in shown:
        path = run.image_path(record.image)
        if record.image not in whole:
            whole[record.image] = path if is_recorded(path, record) else None
        prompts.setdefault(record.prompt_id, []).append(record)
    rows = []
    for number, (prompt_id, records) in enumerate(prompts.items()):
        cells = {}
        for record in records:
            score = scores.get(record.id) or ScoreRecord(id=record.id)
            cell = GalleryCell(
                encoder=record.encoder,
                setting=setting_of(record.protocol, record.source, record.k),
                prompt=record.prompt,
                given=record.given,
                image=whole[record.image],
                correct=score.scene_correct,
                clip_score=score.clip_score,
                drift=score.drift,
                shattered=broken.get((record.source or "", record.k, prompt_id), ()),
            )
            cells[cell.encoder, cell.setting] = cell
        rows.append(GalleryRow(prompt_id, records[0].original, number, cells, _damage(cells, baseline)))
    return sorted(rows, key=lambda row: row.damage, reverse=True)


def _damage(cells: dict[tuple[str, Setting], GalleryCell], baseline: str) -> tuple[float, float, float]:
    clean = cells.get((baseline, Setting("clean")))
    attacked = [
        c for (label, s), c in cells.items() if label == baseline and (s.protocol == "adaptive" or s.source == label)
    ]
    if clean is None or not attacked:
        return (0.0, 0.0, 0.0)
    n = len(attacked)
    wrong = sum(bool(clean.correct) - bool(cell.correct) for cell in attacked) / n
    lost = sum((clean.clip_score or 0.0) - (cell.clip_score or 0.0) for cell in attacked) / n
    return (wrong, lost, sum(cell.drift or 0.0 for cell in attacked) / n)


def most_telling(rows: Sequence[GalleryRow], results: Results, limit: int) -> list[GalleryRow]:
    """The rows on which the robust encoder gains most over the baseline, or that lose most where there is none."""
    robust, focus = results.robust, results.focus
    if focus is None:
        return []
    chosen = list(rows)
    if robust:
        chosen.sort(key=lambda row: row.gain(robust, results.baseline, focus), reverse=True)
    return [row for row in chosen[:limit] if (results.baseline, focus) in row.cells]


def save_overview(run: Run | str | Path, path: Path, *, limit: int = 4) -> None:
    """One image that shows the effect, as a README opens with: the most telling prompts, clean and attacked, by the
    baseline and by the robust encoder. Raises ValueError for a run without attacked images."""
    run = run if isinstance(run, Run) else load_run(run)
    results = Results.of(run)
    if results.focus is None:
        raise ValueError(f"{run.folder} holds no attacked images")
    rows = most_telling(gallery_rows(run, baseline=results.baseline), results, limit)
    labels = [label for label in (results.baseline, results.robust) if label]
    contact_sheet(rows, labels, results.focus, scale=1.9).savefig(path, dpi=100)


def marks(original: str, perturbed: str) -> list[tuple[str, str]]:
    """The edit as ("same" | "del" | "ins", text) pieces, left to right."""
    pieces = []
    for code in Levenshtein.opcodes(original, perturbed):
        before, after = original[code.src_start : code.src_end], perturbed[code.dest_start : code.dest_end]
        if code.tag == "equal":
            pieces.append(("same", before))
            continue
        pieces += [(kind, text) for kind, text in (("del", before), ("ins", after)) if text]
    return pieces


def contact_sheet(
    rows: Sequence[GalleryRow], encoders: Sequence[str], setting: Setting, *, scale: float = 1.6
) -> Figure:
    """A matplotlib figure: one line a prompt; for each encoder its clean and its attacked image, framed by the judge."""
    import textwrap

    import numpy as np
    from matplotlib.figure import Figure

    columns = [(label, s) for label in encoders for s in (Setting("clean"), setting)]
    figure = Figure(figsize=(scale * len(columns), (scale + 0.55) * max(len(rows), 1)), layout="constrained")
    axes = figure.subplots(max(len(rows), 1), len(columns), squeeze=False)
    for line, row in zip(axes, rows, strict=False):
        for axis, (label, s) in zip(line, columns, strict=True):
            axis.set(xticks=[], yticks=[])
            cell = row.cells.get((label, s))
            if cell is None or cell.image is None:
                axis.text(0.5, 0.5, "missing", ha="center", va="center", transform=axis.transAxes)
                continue
            image = read_image(cell.image, formats=["PNG"])
            axis.imshow(np.asarray(image), interpolation="nearest" if image.width < 128 else None)
            mark = {True: " ✓", False: " ✗", None: ""}[cell.correct]
            text = "\n".join(textwrap.wrap(visible(cell.prompt), 24, max_lines=2, placeholder="…"))
            axis.set_xlabel(text, fontsize=6.5, parse_math=False)
            axis.set_title(
                f"{visible(label)}{'' if s.protocol == 'clean' else f', k={s.k}'}{mark}", fontsize=7, parse_math=False
            )
            if cell.correct is not None:
                for spine in axis.spines.values():
                    spine.set(color="#009e73" if cell.correct else "#d55e00", linewidth=2)
    return figure


def show_gallery(
    run: Run | str | Path,
    *,
    k: int = 1,
    limit: int = 6,
    encoders: Sequence[str] | None = None,
    source: str | None = None,
) -> Figure:
    """The `limit` most damaged prompts as a figure, for notebooks. source: None for adaptive attacks, else a label.

    Raises ValueError when the run holds no image of that attack.
    """
    rows = gallery_rows(run)
    setting = Setting("adaptive", "", k) if source is None else Setting("transfer", source, k)
    labels = list(dict.fromkeys(label for row in rows for label, s in row.cells if s == setting))
    if not labels:
        raise ValueError(f"the run holds no images of prompts {setting.label}")
    return contact_sheet(rows[:limit], list(encoders or labels), setting)
