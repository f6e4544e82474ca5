"""Means over prompts, shares and paired differences with 95% intervals; prompts of one cluster count together.

Prompts of one noun, or captions of one image, fall together: the clusters are the sample (Liang and Zeger, 1986, with few
clusters' degrees of freedom as Satterthwaite counts them). A share has Wilson's interval (1927), the paired difference of two
shares Tango's score interval (1998), both with the effective number of prompts that the clusters leave (Korn and Graubard,
1998); any other mean has Student's. How often they cover the truth is simulated in `tests/metrics/test_coverage.py`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import copysign, inf, isfinite, nan, sqrt

import numpy as np
from scipy.optimize import brentq
from scipy.stats import t

Values = Mapping[str, float | Sequence[float]] | Sequence[float] | Sequence[Sequence[float]] | np.ndarray
Clusters = Mapping[str, Hashable] | Sequence[Hashable]
FEWEST = 10
"""Independent units below which an interval decides nothing: too few to know their own spread."""
SIGNIFICANT = 0.05
"""A p value below it decides, as an interval of 95% does that excludes 0."""


@dataclass(frozen=True)
class Interval:
    """Mean over n prompts with its interval; the bounds are NaN for a mean of one cluster (it shows no spread).

    clusters: how many independent units the prompts are; p: of no difference, two-sided, None for a mean and for fewer than
    `FEWEST` units.
    """

    mean: float
    ci_low: float
    ci_high: float
    n: int
    clusters: int
    p: float | None = None


def mean_interval(
    values: Values,
    against: Values | None = None,
    *,
    clusters: Clusters | None = None,
    share: bool = False,
    level: float = 0.95,
) -> Interval:
    """Mean over prompts, or mean(values) - mean(against) over the same prompts, with its interval.

    values: one number a prompt, or one sequence a prompt (its seeds, averaged first; counts may differ). A mapping is
    taken in the order of its keys, so the order in which records were written does not matter. clusters: what each prompt
    belongs to, laid out as `values`; default: each alone. share: the values are shares of what is counted, 0 to 1.
    Raises ValueError on no prompt, on prompts that differ between the sides, on an empty prompt or NaN (leave those out
    before, and count them), on shares outside 0..1, on a level outside 0..1.
    """
    if not 0 < level < 1:
        raise ValueError(f"an interval needs 0 < level < 1, not {level}")
    means, others = _prompt_means(values), None if against is None else _prompt_means(against)
    if others is not None and against is not None:
        _check_pairs(values, against)
        if len(means) != len(others):
            raise ValueError(f"{len(means)} prompts against {len(others)}: a paired difference needs the same ones")
    if share and any(len(side) and (side.min() < 0 or side.max() > 1) for side in (means, others) if side is not None):
        raise ValueError("a share lies between 0 and 1")
    given = means if others is None else means - others
    spread = _Spread.of(given, _numbers(values, clusters, len(means)))
    mean = float(given.mean())
    # of independent prompts a share's variance follows from the share
    freedom = inf if share and spread.alone else spread.freedom
    quantile = float(t.ppf((1 + level) / 2, freedom))
    statistic = 0.0
    if share and others is None:
        low, high = _wilson(mean, spread.effective(mean * (1 - mean)), quantile)
    elif share:
        more, less = float(np.maximum(given, 0).mean()), float(np.maximum(-given, 0).mean())
        effective = spread.effective(more + less - mean**2)
        counts = more * effective, less * effective, effective
        low, high = _tango(*counts, quantile)
        statistic = _tango_score(*counts, 0.0)
    else:
        error = sqrt(spread.variance) if spread.clusters > 1 else nan
        low, high = mean - quantile * error, mean + quantile * error
        statistic = mean / error if error else copysign(inf, mean) if mean else 0.0
    tested = others is not None and spread.clusters >= FEWEST
    p = 2 * float(t.sf(abs(statistic), freedom)) if tested else None
    return Interval(mean, low, high, len(given), spread.clusters, p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p values of a family, adjusted (Holm, 1979): below a level for any without a difference at most as often as that
    level says, however they hang together. None, where nothing was tested, stays and counts for none."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, i) in enumerate(tested):
        adjusted[i] = least = max(least, min(1.0, (len(tested) - rank) * p))
    return adjusted


@dataclass(frozen=True)
class _Spread:
    """How a mean over clusters varies. variance: of the mean, at least that of independent prompts; freedom: degrees of it;
    alone: whether each prompt is a cluster."""

    variance: float
    freedom: float
    clusters: int
    alone: bool

    @classmethod
    def of(cls, values: np.ndarray, cluster: np.ndarray) -> _Spread:
        n, g = len(values), int(cluster.max()) + 1
        if g == 1:
            return cls(0.0, 1.0, 1, n == 1)
        rest = values - values.mean()
        sums = np.bincount(cluster, weights=rest, minlength=g)
        squares = float((sums**2).sum())
        variance = g / (g - 1) * squares / n**2
        independent = float((rest**2).sum()) / n / (n - 1)
        freedom = g - 1.0
        if squares > 0:  # a sum of squares that a few clusters make up has the degrees of freedom of a few
            parts = (
                sums / np.abs(sums).max()
            ) ** 2  # fourth powers of the sums themselves may be too small for a float
            freedom = min(freedom, max(1.0, 3 * float(parts.sum()) ** 2 / float((parts**2).sum())))
        return cls(max(variance, independent), freedom if g < n else n - 1.0, g, g == n)

    def effective(self, variance: float) -> float:
        """How many independent prompts, of that variance each, would vary as much; the clusters where nothing varies."""
        return variance / self.variance if variance > 0 and self.variance > 0 else float(self.clusters)


def _wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Of a share of n."""
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * sqrt(max(0.0, share * (1 - share)) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def _tango_score(more: float, less: float, n: float, difference: float) -> float:
    """Tango's score statistic of the difference (more - less) / n between two shares of the same n."""
    b = -more - less + (2 * n - more + less) * difference
    c = -less * difference * (1 - difference)
    q = (sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    variance = n * (2 * q + difference * (1 - difference))
    return (more - less - n * difference) / sqrt(variance) if variance > 1e-12 else 0.0


def _tango(more: float, less: float, n: float, z: float) -> tuple[float, float]:
    """The differences that the score test keeps."""
    estimate = (more - less) / n

    def end(bound: float, sign: int) -> float:
        inside = bound * (1 - 1e-9)
        if (bound - estimate) * sign <= 1e-9 or sign * _tango_score(more, less, n, inside) > -z:
            return bound
        return float(brentq(lambda at: _tango_score(more, less, n, at) + sign * z, estimate, inside))

    return end(-1.0, -1), end(1.0, 1)


def _check_pairs(values: Values, against: Values) -> None:
    if isinstance(values, Mapping) != isinstance(against, Mapping):
        raise ValueError("pair a mapping with a mapping, or a sequence with a sequence")
    if isinstance(values, Mapping) and isinstance(against, Mapping) and values.keys() != against.keys():
        odd = sorted(map(str, values.keys() ^ against.keys()))
        raise ValueError(f"{len(odd)} prompts stand on one side only: {', '.join(odd[:5])}")


def _numbers(values: Values, clusters: Clusters | None, n: int) -> np.ndarray:
    """The number of each prompt's cluster."""
    if clusters is None:
        return np.arange(n)
    if isinstance(values, Mapping) != isinstance(clusters, Mapping):
        raise ValueError("clusters are laid out as the values: a mapping, or a sequence")
    if isinstance(values, Mapping) and isinstance(clusters, Mapping):
        if missing := sorted(values.keys() - clusters.keys()):
            raise ValueError(f"{len(missing)} prompts belong to no cluster: {', '.join(missing[:5])}")
        named: Sequence[Hashable] = [clusters[key] for key in sorted(values)]
    else:
        named = list(clusters)
        if len(named) != n:
            raise ValueError(f"{n} prompts and {len(named)} clusters")
    known = {name: number for number, name in enumerate(dict.fromkeys(named))}
    return np.array([known[name] for name in named])


def _prompt_means(values: Values) -> np.ndarray:
    rows = [values[key] for key in sorted(values)] if isinstance(values, Mapping) else list(values)
    if not rows:
        raise ValueError("a mean over no prompts")
    means = np.empty(len(rows))
    for index, row in enumerate(rows):
        if not isinstance(row, float | int):  # its seeds
            row = float(np.mean(row, dtype=np.float64)) if np.size(row) else nan
        if not isfinite(row):
            raise ValueError(f"prompt number {index} has no value or a non-finite one: leave it out and count it")
        means[index] = row
    return means
