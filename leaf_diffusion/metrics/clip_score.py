"""CLIPScore (Hessel et al., 2021) as torchmetrics defines it, over an injected model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from leaf_diffusion.metrics.drift import cosine


class ClipModel(Protocol):
    """Image and text tower of one CLIP, both into one space [n, d]. Use one that was not attacked."""

    def encode_image(self, images: list[Image.Image], /) -> Tensor: ...

    def encode_text(self, texts: list[str], /) -> Tensor: ...


def clip_score_from_features(image: Tensor, text: Tensor) -> float:
    """100 * cosine of one image's and one caption's features [d].

    Not clamped at 0: torchmetrics clamps the mean only, and an interval over prompts needs the values themselves.
    ValueError for NaN and infinity.
    """
    return 100 * cosine(image, text)


def clip_scores(
    images: Sequence[Image.Image], texts: Sequence[str], model: ClipModel, *, batch_size: int = 64
) -> list[float]:
    """100 * cosine of each image and its caption, not clamped. Raises ValueError when the lengths differ.

    The model truncates captions beyond its context length; count those beside the score.
    """
    if len(images) != len(texts):
        raise ValueError(f"each image needs its caption: {len(images)} images, {len(texts)} captions")
    scores: list[float] = []
    for start in range(0, len(images), batch_size):
        with torch.inference_mode():
            features = model.encode_image(list(images[start : start + batch_size]))
            captions = model.encode_text(list(texts[start : start + batch_size]))
        for i, (a, b) in enumerate(zip(features, captions, strict=True), start):
            try:
                scores.append(clip_score_from_features(a, b))
            except ValueError as error:
                raise ValueError(f"image {i} with the caption {texts[i]!r}: {error}") from error
    return scores


def clip_score(images: Sequence[Image.Image], texts: Sequence[str], model: ClipModel, *, batch_size: int = 64) -> float:
    """Mean of `clip_scores`, at least 0: torchmetrics.functional.multimodal.clip_score. ValueError on no image."""
    if not images:
        raise ValueError("CLIPScore of no images")
    scores = clip_scores(images, texts, model, batch_size=batch_size)
    return max(sum(scores) / len(scores), 0.0)
