"""How often an interval of 95% holds the truth: simulated prompts of the sizes and correlations that were measured.

The world's captions of one noun fall together (intraclass correlation 0.83), captions of one COCO image less so. Where a share
is near 0 or 1 there are few outcomes, and no interval covers 95% of them exactly: those are on the safe side.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from leaf_diffusion.metrics import mean_interval

pytestmark = pytest.mark.slow
RUNS = 500
WORLD, COCO, ALONE = (22, 8, 0.83), (60, 5, 0.4), (150, 1, 0.0)
"""Clusters, prompts a cluster, intraclass correlation of being right."""
LEAST, MOST = 0.93 - 0.022, 0.97 + 0.017
"""93 to 97%, and two standard errors of a share of 500 simulations."""


def chances(share: float, correlation: float, noun: np.ndarray) -> np.ndarray:
    """How likely each noun's prompts are right, from uniform numbers: a beta distribution of that mean and correlation."""
    if not correlation:
        return np.full(len(noun), share)
    scale = (1 - correlation) / correlation
    return beta.ppf(noun, share * scale, (1 - share) * scale)


def covered(size: tuple[int, int, float], shares: tuple[float, ...], seed: int = 0) -> float:
    """How often the interval of a share, or of a paired difference, holds the true one. Of two encoders half of the nouns are
    as hard for both."""
    clusters, each, correlation = size
    names, hits, rng = list(np.repeat(np.arange(clusters), each)), 0, np.random.default_rng(seed)
    for _ in range(RUNS):
        first = rng.random(clusters)
        second = np.where(rng.random(clusters) < 0.5, first, rng.random(clusters))
        right = [
            (rng.random(clusters * each) < np.repeat(chances(share, correlation, noun), each)).astype(float)
            for share, noun in zip(shares, (first, second), strict=False)
        ]
        found = mean_interval(*right, clusters=names, share=True)
        truth = shares[0] - sum(shares[1:])
        hits += found.ci_low <= truth <= found.ci_high
    return hits / RUNS


@pytest.mark.parametrize("size", [WORLD, COCO, ALONE], ids=["world", "coco", "alone"])
@pytest.mark.parametrize("shares", [(0.52,), (0.2,), (0.5, 0.5), (0.48, 0.2)], ids=str)
def test_as_often_as_it_says(size: tuple[int, int, float], shares: tuple[float, ...]) -> None:
    assert LEAST <= covered(size, shares) <= MOST


@pytest.mark.parametrize("size", [WORLD, COCO, ALONE, (12, 1, 0.0), (32, 1, 0.0)], ids=str)
@pytest.mark.parametrize("shares", [(0.02,), (0.93,), (0.02, 0.02), (0.98, 0.93)], ids=str)
def test_near_none_and_all_not_less_often(size: tuple[int, int, float], shares: tuple[float, ...]) -> None:
    assert covered(size, shares) >= LEAST


def test_verdicts_without_a_difference_are_rarely_false() -> None:
    """Two encoders alike, ten to thirteen prompts: an interval that excludes 0 would be a verdict."""
    for n in (10, 13):
        assert covered((n, 1, 0.0), (0.5, 0.5)) >= LEAST


def test_a_mean_of_what_is_skewed() -> None:
    """Drift is skewed, and of one noun's prompts alike."""
    rng, hits = np.random.default_rng(0), 0
    names = list(np.repeat(np.arange(40), 4))
    for _ in range(RUNS):
        values = np.repeat(rng.gamma(2.0, 0.5, 40), 4) * rng.gamma(4.0, 0.25, 160)
        found = mean_interval(values, clusters=names)
        hits += found.ci_low <= 1.0 <= found.ci_high
    assert LEAST <= hits / RUNS <= MOST
