"""Scores of images: CLIPScore, scene accuracy, drift from the same encoder's clean image of the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from leaf_diffusion.evaluation.t2i.judges import Judges
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.metrics import clip_score_from_features, feature_drift, pixel_rmse
from leaf_diffusion.runs import RunStore
from leaf_diffusion.runs.scheduler import Advance, Batch, chunks, run_batches

AT_ONCE = 256


def score_all(setup: Setup, judges: Judges, store: RunStore, advance: Advance) -> None:
    """Score every image that has no score yet.

    Drift is measured against the same encoder's clean image from the same noise: what the attack moved, not what the
    encoders differ by. The floor's images are measured against the clean ones of noise 0. What the encoders differ by is
    the swap drift of clean images, against the first encoder's of the same noise.
    """
    recorded = {row["id"]: row for row in store.records("images")}
    images = [recorded[unit.id] for unit in setup.plan.images()]
    clean = {(r["encoder"], r["prompt_id"], r["seed_index"]): r["image"] for r in images if r["protocol"] == "clean"}
    first = setup.plan.cells[0].encoder
    scenes = {prompt.id: prompt.scene for prompt in setup.prompts}

    def batch(rows: Sequence[dict[str, Any]]) -> Batch:
        def work() -> None:
            references = [
                clean[
                    first if r["protocol"] == "clean" else r["encoder"],
                    r["prompt_id"],
                    0 if r["protocol"] == "floor" else r["seed_index"],
                ]
                for r in rows
            ]
            paths = dict.fromkeys([*references, *(row["image"] for row in rows)])
            images = {path: store.load_image(path) for path in paths}
            for row in _score(rows, references, images, scenes, judges, first):
                store.append("scores", row)

        return Batch([row["id"] for row in rows], work)

    run_batches(store, "scores", [batch(rows) for rows in chunks(images, setup.options.at_once(AT_ONCE))], advance)


def _score(
    batch: Sequence[dict[str, Any]],
    references: Sequence[str],
    images: dict[str, Image.Image],
    scenes: dict[str, Any],
    judges: Judges,
    first: str,
) -> list[dict[str, Any]]:
    rows = [{"unit": "score", "id": row["id"]} for row in batch]
    shown = [images[row["image"]] for row in batch]
    moved = [row["protocol"] != "clean" for row in batch]
    swapped = [row["protocol"] == "clean" and row["encoder"] != first for row in batch]
    rmse = [pixel_rmse(a, images[b]) for a, b in zip(shown, references, strict=True)]
    columns: dict[str, Sequence[Any]] = {"drift": _where(moved, rmse), "swap_drift": _where(swapped, rmse)}
    if judges.clip is not None:
        features = dict(zip(images, judges.clip.encode_image(list(images.values())), strict=True))
        columns |= _clip_columns(batch, references, moved, swapped, features, judges)
    judged = [i for i, row in enumerate(batch) if scenes[row["prompt_id"]] is not None and judges.scenes is not None]
    if judged:
        asked = [scenes[batch[i]["prompt_id"]] for i in judged]
        right = dict(zip(judged, judges.scenes.correct([shown[i] for i in judged], asked), strict=True))
        columns["scene_correct"] = [right.get(i) for i in range(len(batch))]
    return [row | {name: values[i] for name, values in columns.items()} for i, row in enumerate(rows)]


def _clip_columns(
    batch: Sequence[dict[str, Any]],
    references: Sequence[str],
    moved: Sequence[bool],
    swapped: Sequence[bool],
    features: dict[str, Tensor],
    judges: Judges,
) -> dict[str, Sequence[Any]]:
    assert judges.clip is not None
    texts = list(dict.fromkeys(text for row in batch for text in (row["original"], row["prompt"])))
    captions = dict(zip(texts, judges.clip.encode_text(texts), strict=True))
    pairs = [(features[row["image"]], row) for row in batch]
    drift = [feature_drift(f, features[b]) for (f, _), b in zip(pairs, references, strict=True)]
    return {
        "clip_score": [clip_score_from_features(f, captions[row["original"]]) for f, row in pairs],
        "clip_score_attacked_caption": [clip_score_from_features(f, captions[row["prompt"]]) for f, row in pairs],
        "drift_features": _where(moved, drift),
        "swap_drift_features": _where(swapped, drift),
    }


def _where(told: Sequence[bool], values: Sequence[float]) -> list[float | None]:
    return [value if right else None for right, value in zip(told, values, strict=True)]
