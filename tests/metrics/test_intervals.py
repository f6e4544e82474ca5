"""Intervals against formulas, against other libraries' figures, and where nothing varies."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, ttest_1samp, ttest_rel

from leaf_diffusion.metrics import FEWEST, SIGNIFICANT, holm, mean_interval


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


def test_the_p_value_is_that_of_student_and_of_mcnemar() -> None:
    first, second = (np.random.default_rng(seed).normal(0.3 * seed, 1, 40) for seed in (1, 2))
    assert mean_interval(first, second).p == pytest.approx(ttest_rel(first, second).pvalue)
    # Tango's score of no difference is McNemar's, without its correction
    for more, less, rest in ((10, 3, 37), (4, 9, 0), (5, 5, 5)):
        sides = [1.0] * more + [0.0] * (less + rest), [0.0] * more + [1.0] * less + [0.0] * rest
        mcnemar, n = (more - less) / math.sqrt(more + less), more + less + rest
        # n - 1 in the variance, where McNemar has n
        assert mean_interval(*sides, share=True).p == pytest.approx(2 * norm.sf(abs(mcnemar) * math.sqrt((n - 1) / n)))


paired = st.lists(
    st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 2, st.integers(0, 30)), min_size=10, max_size=40
)


@settings(max_examples=80, deadline=None)
@given(paired, st.booleans(), st.booleans())
def test_interval_and_p_value_are_one_test(drawn: list[tuple[float, float, int]], share: bool, together: bool) -> None:
    first, second, nouns = zip(*drawn, strict=True)
    clusters = nouns if together else None
    found = mean_interval(first, second, clusters=clusters, share=share)
    if found.p is None:
        assert found.clusters < FEWEST
    elif found.p < 1e-9 or found.p > 1 - 1e-9:
        assert (found.p < SIGNIFICANT) == (not found.ci_low <= 0 <= found.ci_high)
    else:  # of every level: the interval of 1 - p just reaches 0
        assert (found.p < SIGNIFICANT) == (not found.ci_low <= 0 <= found.ci_high)
        wide, narrow = (
            mean_interval(first, second, clusters=clusters, share=share, level=1 - found.p * by) for by in (0.99, 1.01)
        )
        assert wide.ci_low <= 0 <= wide.ci_high
        assert not narrow.ci_low <= 0 <= narrow.ci_high


def test_a_mean_and_too_few_units_have_no_p_value() -> None:
    alike, other = [1.0] * 12, [0.0] * 12
    assert mean_interval(alike).p is None and mean_interval(alike, share=True).p is None
    assert mean_interval(alike[:9], other[:9], share=True).p is None
    assert mean_interval(alike, other, clusters=[i % 9 for i in range(12)]).p is None
    assert mean_interval(alike, other).p == 0
    assert mean_interval(alike, alike).p == mean_interval(alike, alike, share=True).p == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    """A difference stands where every family that it belongs to has one, by the smallest p times its size."""
    numbers = range(len(p_values))
    families = [set(some) for size in numbers for some in combinations(numbers, size + 1)]
    closed = [max(min(1.0, len(f) * min(p_values[j] for j in f)) for f in families if i in f) for i in numbers]
    assert holm(p_values) == pytest.approx(closed)


def test_holm_leaves_out_what_was_not_tested() -> None:
    assert holm([0.03, None, 0.01, 0.04]) == pytest.approx([0.06, None, 0.03, 0.06])
    assert holm([None, 0.04]) == [None, 0.04]
    assert holm([]) == []


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


@pytest.mark.parametrize("scale", [1e-100, 1e-40, 1e60])
def test_the_size_of_the_numbers_does_not_matter(scale: float) -> None:
    values = {f"{i}": 1.0 + i % 7 for i in range(24)}
    clusters = {name: f"c{int(name) % 12}" for name in values}
    plain = mean_interval(values, clusters=clusters)
    scaled = mean_interval({name: scale * value for name, value in values.items()}, clusters=clusters)
    assert (scaled.ci_low / scale, scaled.ci_high / scale) == pytest.approx((plain.ci_low, plain.ci_high), rel=1e-9)
