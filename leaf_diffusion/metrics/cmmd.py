"""CMMD (Jayasumana et al., 2024, "Rethinking FID"): Gaussian MMD^2 of CLIP features."""

from __future__ import annotations

import numpy as np

from leaf_diffusion.metrics.distribution import Distance, Features, feature_sets

SIGMA, SCALE = 10.0, 1000.0


def cmmd(a: Features, b: Features) -> Distance:
    """1000 * MMD^2 with exp(-|x-y|^2 / (2 * 10^2)) on rows scaled to unit length; features [n, d] and [m, d].

    As in the paper's code each image also meets itself: 0 for equal sets, never negative, and biased upwards by
    about 10 (1 - mean cosine within a set) / n for each set, so compare equal n only. ValueError on a zero row.
    """
    first, second = feature_sets(a, b, least=1)
    norms = [np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second)]
    if min(norm.min() for norm in norms) == 0:
        raise ValueError("a feature row is all zero: it has no direction")
    x, y = first / norms[0], second / norms[1]
    value = _mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y)
    return Distance(max(SCALE * value, 0.0), len(x), len(y), x.shape[1])


def _mean_kernel(x: np.ndarray, y: np.ndarray, rows: int = 1024) -> float:
    """Mean of exp(-|x_i - y_j|^2 / (2 sigma^2)) of unit rows, in strips so that memory stays bounded."""
    total = 0.0
    for start in range(0, len(x), rows):
        squared = np.clip(2 - 2 * x[start : start + rows] @ y.T, 0, None)
        total += float(np.exp(-squared / (2 * SIGMA**2)).sum())
    return total / (len(x) * len(y))
