"""What the figures leave out or count although it is odd: dropped, filtered, truncated, unchanged, not judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from leaf_diffusion.images import decode_image
from leaf_diffusion.reports.gallery import GalleryRow
from leaf_diffusion.reports.results import METRICS, PAIRED, Results
from leaf_diffusion.runs.records import ScoreRecord
from leaf_diffusion.runs.results import Counts
from leaf_diffusion.text.visible import isolated


def uncounted(
    rows: Sequence[GalleryRow], results: Results, counts: Counts, scores: Sequence[ScoreRecord]
) -> list[tuple[str, str]]:
    """(number, what it counts) of each thing, zeros too: a zero says that it was looked for."""
    n = len(scores)
    paths = {cell.image for row in rows for cell in row.cells.values()}
    black = sum(_is_black(path) for path in paths if path is not None)
    damaged = sum(cell.image is None for row in rows for cell in row.cells.values())
    short = _short(results, len(rows))
    lines = [
        (
            str(len(short)),
            f"means over fewer than the {len(rows)} prompts{': ' if short else ''}{'; '.join(short[:6])}",
        ),
        (
            _count(counts.truncated),
            "images from a prompt longer than the encoder reads: its end was cut, they count",
        ),
        (
            _count(counts.given_unchanged),
            "attacked images whose encoder read the clean prompt, as no edit was found or the defence undid it: they count",
        ),
        (
            f"{sum(s.scene_correct is None for s in scores)} of {n}",
            "images without a verdict of a scene judge",
        ),
        (f"{sum(s.clip_score is None for s in scores)} of {n}", "images without a CLIPScore"),
        (str(black), "images wholly black, as a safety filter leaves them: they count"),
        (str(damaged), "images missing or damaged on the disk: measured before, not shown below"),
    ]
    if counts.drawn is not None:
        lines.append(
            (
                f"{counts.drawn} of {n if counts.images is None else counts.images}",
                "images drawn; equal ones (same text, weights, noise) once",
            )
        )
    return lines


def _count(found: int | None) -> str:
    return "not counted:" if found is None else str(found)


def _short(results: Results, prompts: int) -> list[str]:
    """Cells whose mean lacks prompts."""
    short = [r for r in results.rows if r.metric in PAIRED and r.baseline is None and r.n < prompts]
    return [f"{METRICS[r.metric].title} of {isolated(r.encoder)}, {r.protocol} k={r.k}, n={r.n}" for r in short]


def _is_black(path: Path) -> bool:
    return decode_image(path, formats=["PNG"]).convert("L").getextrema() == (0, 0)
