"""How far an image moved when only its prompt was attacked (same seed, same encoder)."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from leaf_diffusion.images import to_rgb


def pixel_rmse(a: Image.Image, b: Image.Image) -> float:
    """Root mean square difference of RGB values in 0..1. Raises ValueError on unequal sizes."""
    if a.size != b.size:
        raise ValueError(f"images of one size are compared, not {a.size} and {b.size}")
    x, y = (np.asarray(to_rgb(image), dtype=np.float64) / 255 for image in (a, b))
    return float(np.sqrt(np.mean((x - y) ** 2)))


def feature_drift(a: Tensor, b: Tensor) -> float:
    """1 - cosine of two feature vectors [d], in 0..2. ValueError for NaN and infinity."""
    return 1 - min(
        1.0, max(-1.0, cosine(a, b))
    )  # rounding takes the cosine beyond 1: equal vectors would drift by -1e-7


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine of two feature vectors [d]. ValueError for NaN and infinity, which would pass as some angle."""
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError(
            "features hold NaN or infinity: the model that made them overflowed, or its weights are damaged"
        )
    return float(torch.cosine_similarity(a.float(), b.float().to(a.device), dim=0))
