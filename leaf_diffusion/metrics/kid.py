"""Kernel Inception Distance (Binkowski et al., 2018), in any feature space."""

from __future__ import annotations

import numpy as np

from leaf_diffusion.metrics.distribution import Distance, Features, feature_sets


def kid(a: Features, b: Features, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> Distance:
    """Unbiased MMD^2 with the kernel (x.y/d + 1)^3: mean and std over random subsets; features [n, d] and [m, d].

    Unbiased at any n, so it may come out slightly negative. A subset is at most the smaller set; std is that of the
    drawn subsets, not of a new sample of images.
    """
    first, second = feature_sets(a, b)
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"KID needs subsets >= 1 and subset_size >= 2, not {subsets} and {subset_size}")
    size = min(subset_size, len(first), len(second))
    rng = np.random.default_rng(seed)
    values = [
        _mmd2(first[rng.choice(len(first), size, replace=False)], second[rng.choice(len(second), size, replace=False)])
        for _ in range(subsets)
    ]
    return Distance(float(np.mean(values)), len(first), len(second), first.shape[1], float(np.std(values)))


def _mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD^2 of two samples of equal size [m, d]."""
    m, width = x.shape
    xx, yy, xy = ((p @ q.T / width + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())
