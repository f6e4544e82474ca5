"""Bootstrap over prompts (Efron and Tibshirani, 1993): prompts are the sample, seeds are averaged inside a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Values = Mapping[str, float | Sequence[float]] | Sequence[float] | Sequence[Sequence[float]] | np.ndarray
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """Mean over n prompts with its percentile interval; the bounds are NaN when n = 1 (one prompt shows no spread)."""

    mean: float
    ci_low: float
    ci_high: float
    n: int


def paired_bootstrap(
    values: Values, against: Values | None = None, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Mean over prompts, or mean(values) - mean(against) over the same prompts, with its percentile interval.

    values: one number a prompt, or one sequence a prompt (its seeds, averaged first; counts may differ). A mapping is
    taken in the order of its keys, so the order in which records were written does not matter. Prompts are drawn
    together on both sides. Raises ValueError on no prompt, on prompts that differ between the sides, on an empty prompt
    or NaN (leave those out before, and count them), on resamples < 1 or a level outside 0..1.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"a bootstrap needs resamples >= 1 and 0 < level < 1, not {resamples} and {level}")
    means = _prompt_means(values)
    if against is not None:
        if isinstance(values, Mapping) != isinstance(against, Mapping):
            raise ValueError("pair a mapping with a mapping, or a sequence with a sequence")
        if isinstance(values, Mapping) and isinstance(against, Mapping) and values.keys() != against.keys():
            odd = sorted(map(str, values.keys() ^ against.keys()))
            raise ValueError(f"{len(odd)} prompts stand on one side only: {', '.join(odd[:5])}")
        others = _prompt_means(against)
        if len(means) != len(others):
            raise ValueError(f"{len(means)} prompts against {len(others)}: a paired difference needs the same ones")
        means = means - others
    n = len(means)
    if n == 1:
        return Interval(float(means[0]), float("nan"), float("nan"), 1)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    draws = [
        means[rng.integers(0, n, size=(min(step, resamples - start), n))].mean(axis=1)
        for start in range(0, resamples, step)
    ]
    low, high = np.quantile(np.concatenate(draws), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(means.mean()), float(low), float(high), n)


def _prompt_means(values: Values) -> np.ndarray:
    rows = [values[key] for key in sorted(values)] if isinstance(values, Mapping) else list(values)
    if not rows:
        raise ValueError("a bootstrap over no prompts")
    means = np.empty(len(rows))
    for index, row in enumerate(rows):
        seeds = np.atleast_1d(np.asarray(row, dtype=np.float64))
        if seeds.size == 0 or not np.isfinite(seeds).all():
            raise ValueError(f"prompt number {index} has no value or a non-finite one: leave it out and count it")
        means[index] = seeds.mean()
    return means
