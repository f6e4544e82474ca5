"""What a difference allows to say, and how it is marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from leaf_diffusion.metrics import FEWEST, SIGNIFICANT
from leaf_diffusion.reports.results import Estimate, Metric

Verdict = Literal["better", "worse", "exploratory", "open", "few", "unknown"]
COLOURED = (
    "Differences are paired, with their 95% intervals. Coloured where a difference holds: its interval excludes 0, there are ten "
    "independent prompts at least and, but for the main comparison that the run declared before it started, p stays below 0.05 "
    "after Holm’s adjustment for all differences by the same metric. “Exploratory”: the interval alone excludes 0."
)
"""What the colours of differences mean."""
WORDS: Mapping[Verdict, str] = {
    "better": "better",
    "worse": "worse",
    "exploratory": "exploratory",
    "open": "no clear difference",
    "few": "too few independent prompts to tell",
    "unknown": "too few prompts to tell",
}
"""Verdicts as a sentence ends with them."""


def verdict(difference: Estimate, metric: Metric) -> Verdict:
    """What a difference allows to say. "exploratory": its interval excludes 0, but it is one of many that were looked at;
    "open": it includes 0; "few": of fewer independent units than tell their own spread; "unknown": there is none."""
    low, high = difference.ci_low, difference.ci_high
    if low is None or high is None:
        return "unknown"
    if (difference.n if difference.clusters is None else difference.clusters) < FEWEST:
        return "few"
    if low <= 0 <= high:
        return "open"
    if difference.p_adjusted is None or difference.p_adjusted >= SIGNIFICANT:
        return "exploratory"
    return "better" if (low > 0) == metric.higher_is_better else "worse"
