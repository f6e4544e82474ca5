"""Frechet distance between Gaussians fitted to features (Heusel et al., 2017; in Inception's space it is the FID)."""

from __future__ import annotations

import numpy as np

from leaf_diffusion.metrics.distribution import Distance, Features, feature_sets


def frechet_distance(a: Features, b: Features) -> Distance:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), in float64; features [n, d] and [m, d], n and m >= 2.

    The value falls as n grows (bias), steeply so while n <= d, where the covariances S are singular: compare equal n
    only, and read KID or CMMD first when images are few. No square root of an asymmetric matrix is taken, so singular
    covariances need no jitter and equal sets give 0 to rounding.
    """
    first, second = feature_sets(a, b)
    # S = X^T X of the centred rows by 1 / sqrt(n - 1)
    x, y = ((each - each.mean(0)) / np.sqrt(len(each) - 1) for each in (first, second))
    cross = _few(x, y) if min(len(x), len(y)) < x.shape[1] else _many(x, y)
    shift = first.mean(0) - second.mean(0)
    value = float(shift @ shift + (x**2).sum() + (y**2).sum() - 2 * cross)
    return Distance(max(value, 0.0), len(first), len(second), first.shape[1])


def _few(x: np.ndarray, y: np.ndarray) -> float:
    """tr (S_a S_b)^(1/2) as the sum of the singular values of X Y^T, whose squares are the eigenvalues of S_a S_b that are
    not 0: the work of [n, m] instead of [d, d]."""
    return float(np.linalg.svd(x @ y.T, compute_uv=False).sum())


def _many(x: np.ndarray, y: np.ndarray) -> float:
    """The same by the covariances."""
    values, vectors = np.linalg.eigh(x.T @ x)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return float(np.sqrt(np.clip(np.linalg.eigvalsh(root @ (y.T @ y) @ root), 0, None)).sum())
