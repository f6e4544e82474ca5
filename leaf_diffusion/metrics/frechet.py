"""Frechet distance between Gaussians fitted to features (Heusel et al., 2017; in Inception's space it is the FID)."""

from __future__ import annotations

import numpy as np

from leaf_diffusion.metrics.distance import Distance, Features, feature_sets


def frechet_distance(a: Features, b: Features) -> Distance:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), in float64; features [n, d] and [m, d], n and m >= 2.

    The value falls as n grows (bias), steeply so while n <= d, where the covariances S are singular: compare equal n
    only, and read KID or CMMD first when pictures are few. No square root of an asymmetric matrix is taken, so singular
    covariances need no jitter and equal sets give 0 to rounding.
    """
    first, second = feature_sets(a, b)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (first, second))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_b @ root), 0, None)).sum()
    shift = first.mean(0) - second.mean(0)
    value = float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)
    return Distance(max(value, 0.0), len(first), len(second), first.shape[1])
