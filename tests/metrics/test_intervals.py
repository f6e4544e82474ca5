"""Intervals against formulas, against other libraries' figures, and where nothing varies."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp

from leaf_diffusion.metrics import FEWEST, mean_interval


def test_a_share_has_the_interval_of_wilson() -> None:
    for right, n in ((0, 32), (1, 32), (45, 150), (150, 150)):
        found = mean_interval([1.0] * right + [0.0] * (n - right), share=True)
        theirs = binomtest(right, n).proportion_ci(method="wilson")
        # n - 1 in the variance, where Wilson has n
        assert (found.ci_low, found.ci_high) == pytest.approx((theirs.low, theirs.high), abs=0.004)
        assert (found.mean, found.n, found.clusters) == (right / n, n, n)


def test_a_mean_has_the_interval_of_student() -> None:
    values = np.random.default_rng(1).normal(5, 2, 40)
    found, theirs = mean_interval(values), ttest_1samp(values, 0).confidence_interval()
    assert (found.ci_low, found.ci_high) == pytest.approx((theirs.low, theirs.high))
    base = np.random.default_rng(2).normal(0, 100, 50)
    paired = mean_interval(base + 1, base)
    assert (paired.mean, paired.ci_low, paired.ci_high) == pytest.approx((1, 1, 1))


def test_a_paired_difference_of_shares_has_the_score_interval_of_tango() -> None:
    """The ends are the differences that the score test of equal shares shifted by them just keeps."""
    for more, less, n in ((10, 3, 50), (3, 10, 50), (5, 0, 30), (0, 0, 30), (1, 1, 12)):
        first = [1.0] * more + [0.0] * (n - more)
        second = [0.0] * more + [1.0] * less + [0.0] * (n - more - less)
        found = mean_interval(first, second, share=True)
        assert found.mean == pytest.approx((more - less) / n)
        assert -1 <= found.ci_low <= found.mean <= found.ci_high <= 1
        mirrored = mean_interval(second, first, share=True)
        assert (mirrored.ci_low, mirrored.ci_high) == pytest.approx((-found.ci_high, -found.ci_low), abs=1e-6)
        for end in (found.ci_low, found.ci_high):
            assert abs(_score(more, less, n, end)) == pytest.approx(1.96, rel=0.06)


def _score(more: int, less: int, n: int, difference: float) -> float:
    """By trying every share of discordant pairs: the likeliest one under that difference, and the statistic with it."""
    both = np.linspace(max(1e-9, -difference), 1, 400_001)  # second right, first wrong
    other = both + difference  # first right, second wrong
    rest = 1 - both - other
    fits = (other > 0) & (rest > 0)
    both, other, rest = both[fits], other[fits], rest[fits]
    likelihood = more * np.log(other) + less * np.log(both) + (n - more - less) * np.log(rest)
    best = int(likelihood.argmax())
    variance = n * (both[best] + other[best] - difference**2)
    return float((more - less - n * difference) / math.sqrt(variance))


def test_prompts_of_one_noun_are_worth_one() -> None:
    nouns = np.repeat(np.arange(20), 8)
    right = (nouns % 3 == 0).astype(float)
    together, alone = mean_interval(right, clusters=list(nouns), share=True), mean_interval(right, share=True)
    one_each = mean_interval(right[::8], share=True)
    assert (together.n, together.clusters) == (160, 20)
    assert together.ci_high - together.ci_low > 2.3 * (alone.ci_high - alone.ci_low)
    assert together.ci_high - together.ci_low == pytest.approx(one_each.ci_high - one_each.ci_low, rel=0.1)
    # clusters that say nothing leave the interval as it is
    mixed = np.tile([0.0, 1.0], 80)
    assert mean_interval(mixed, clusters=list(nouns)).ci_high == pytest.approx(mean_interval(mixed).ci_high, abs=0.01)


def test_where_nothing_varies_a_share_still_is_not_known() -> None:
    for values, against in (([1.0] * 12, None), ([0.0] * 32, None), ([1.0] * 12, [1.0] * 12)):
        found = mean_interval(values, against, share=True)
        assert found.ci_high - found.ci_low > 0.1
    assert mean_interval([1.0, 1.0], [0.0, 0.0], share=True).ci_low < 0
    few, many = (mean_interval([1.0] * 40, share=True, clusters=[i % n for i in range(40)]) for n in (10, 40))
    assert few.ci_low < many.ci_low - 0.1
    assert FEWEST == 10


def test_seeds_are_averaged_inside_a_prompt_before_anything_else() -> None:
    ragged: dict[str, list[float]] = {"b": [0.0, 1.0], "a": [1.0], "c": [0, 0, 0, 1]}
    assert mean_interval(ragged) == mean_interval([1.0, 0.5, 0.25])
    assert mean_interval(ragged) == mean_interval(dict(reversed(ragged.items())))
    # copies of a seed are no new prompts
    assert mean_interval(np.repeat(np.arange(5.0)[:, None], 9, axis=1)) == mean_interval(np.arange(5.0))


def test_one_prompt_and_one_cluster_have_no_interval() -> None:
    for found in (mean_interval([0.5]), mean_interval([0.5, 0.7, 0.1], clusters=["cat"] * 3)):
        assert math.isnan(found.ci_low)
        assert math.isnan(found.ci_high)
        assert found.clusters == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=40))
def test_the_interval_holds_the_estimate(drawn: list[tuple[int, int, int]]) -> None:
    first, second, clusters = ([float(row[i]) for row in drawn] for i in range(3))
    for against in (None, second):
        found = mean_interval(first, against, clusters=clusters, share=True)
        assert -1 <= found.ci_low <= found.mean + 1e-9 and found.mean - 1e-9 <= found.ci_high <= 1
        assert found == mean_interval(first, against, clusters=clusters, share=True)
        wide = mean_interval(first, against, clusters=clusters, share=True, level=0.99)
        assert wide.ci_low <= found.ci_low + 1e-9 and found.ci_high - 1e-9 <= wide.ci_high


def test_clusters_are_taken_by_the_names_of_the_prompts() -> None:
    values, nouns = {"b": 1.0, "a": 0.0, "c": 1.0}, {"a": "cat", "b": "hat", "c": "hat", "d": "key"}
    assert mean_interval(values, clusters=nouns) == mean_interval([0.0, 1.0, 1.0], clusters=["cat", "hat", "hat"])


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        mean_interval([])
    with pytest.raises(ValueError, match="number 1"):
        mean_interval([1.0, math.nan])
    with pytest.raises(ValueError, match="number 0"):
        mean_interval({"a": []})
    with pytest.raises(ValueError, match="one side only: x, y"):
        mean_interval({"x": 1.0, "z": 2.0}, {"y": 1.0, "z": 2.0})
    with pytest.raises(ValueError, match="2 prompts against 1"):
        mean_interval([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="mapping"):
        mean_interval({"x": 1.0}, [1.0])
    with pytest.raises(ValueError, match="belong to no cluster: x"):
        mean_interval({"x": 1.0}, clusters={"y": "cat"})
    with pytest.raises(ValueError, match="1 prompts and 2 clusters"):
        mean_interval([1.0], clusters=["a", "b"])
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval([1.5], share=True)
    with pytest.raises(ValueError, match="0 < level < 1"):
        mean_interval([1.0, 2.0], level=95)
