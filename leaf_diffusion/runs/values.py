"""One number a prompt: what every mean, interval and paired difference of a run is taken over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from leaf_diffusion.runs.records import ImageRecord, ScoreRecord

FIELDS = {
    "clip_score": "clip_score",
    "clip_score_attacked_caption": "clip_score_attacked_caption",
    "scene_accuracy": "scene_correct",
    "drift": "drift",
    "drift_features": "drift_features",
}
"""Metric -> field of a score record. Drift (pixel RMSE, 0 to 1) has the protocol "floor" beside it."""

SWAP_FIELDS = {"drift": "swap_drift", "drift_features": "swap_drift_features"}
"""The same of clean images: how far they are from the first encoder's of the same prompt and noise."""

Values = dict[str, float]
"""Prompt id -> value, the mean over noises."""
Key = tuple[str, str, str | None, int]
"""(encoder, protocol, source, k) of an image."""


def prompt_values(
    images: Iterable[ImageRecord], scores: Iterable[ScoreRecord], fields: Mapping[str, str] = FIELDS
) -> dict[tuple[Key, str], Values]:
    """The values of every (key, metric) that some image has a score for."""
    by_id = {score.id: score for score in scores}
    noises: dict[tuple[Key, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for image in images:
        key: Key = (image.encoder, image.protocol, image.source, image.k)
        for metric, name in fields.items():
            if image.protocol == "floor" and not metric.startswith("drift"):
                continue
            value = getattr(by_id.get(image.id), name, None)
            if value is not None:
                noises[key, metric][image.prompt_id].append(float(value))
    return {key: {prompt: float(np.mean(each)) for prompt, each in found.items()} for key, found in noises.items()}
