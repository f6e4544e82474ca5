import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaf_diffusion.metrics import paired_bootstrap


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        found = paired_bootstrap(rng.random(40) < 0.3, resamples=1000)
        hits += found.ci_low <= 0.3 <= found.ci_high
    assert 0.88 <= hits / 300 <= 0.98


def test_width_agrees_with_the_standard_error() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = paired_bootstrap(values)
    error = values.std() / math.sqrt(400)
    assert (found.ci_high - found.ci_low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert found.mean == pytest.approx(values.mean())
    narrow = paired_bootstrap(values, level=0.5)
    assert narrow.ci_high - narrow.ci_low < (found.ci_high - found.ci_low) / 2


def test_pairing_removes_what_both_sides_share() -> None:
    base = np.random.default_rng(2).normal(0, 100, 50)
    found = paired_bootstrap(base + 1, base)
    assert (found.mean, found.ci_low, found.ci_high) == pytest.approx((1, 1, 1))


def test_seeds_are_averaged_inside_a_prompt_before_anything_else() -> None:
    ragged: dict[str, list[float]] = {"b": [0.0, 1.0], "a": [1.0], "c": [0, 0, 0, 1]}
    assert paired_bootstrap(ragged) == paired_bootstrap([1.0, 0.5, 0.25])
    assert paired_bootstrap(ragged) == paired_bootstrap(dict(reversed(ragged.items())))
    # copies of a seed are no new prompts
    assert paired_bootstrap(np.repeat(np.arange(5.0)[:, None], 9, axis=1)) == paired_bootstrap(np.arange(5.0))


def test_one_prompt_has_no_interval() -> None:
    found = paired_bootstrap([0.5])
    assert (found.mean, found.n) == (0.5, 1)
    assert math.isnan(found.ci_low)
    assert math.isnan(found.ci_high)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20))
def test_the_interval_lies_within_the_values_and_is_repeatable(values: list[float]) -> None:
    found = paired_bootstrap(values, resamples=200)
    assert min(values) - 1e-9 <= found.ci_low <= found.ci_high <= max(values) + 1e-9
    assert found == paired_bootstrap(values, resamples=200)


def test_large_samples_are_drawn_in_parts() -> None:
    values = np.arange(50_000) % 2
    found = paired_bootstrap(values, resamples=200)
    assert found.ci_low < 0.5 < found.ci_high
    assert found.ci_high - found.ci_low < 0.02


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        paired_bootstrap([])
    with pytest.raises(ValueError, match="number 1"):
        paired_bootstrap([1.0, math.nan])
    with pytest.raises(ValueError, match="number 0"):
        paired_bootstrap({"a": []})
    with pytest.raises(ValueError, match="one side only: x, y"):
        paired_bootstrap({"x": 1.0, "z": 2.0}, {"y": 1.0, "z": 2.0})
    with pytest.raises(ValueError, match="2 prompts against 1"):
        paired_bootstrap([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="mapping"):
        paired_bootstrap({"x": 1.0}, [1.0])
    for wrong in ({"resamples": 0}, {"level": 95}):
        with pytest.raises(ValueError, match="needs resamples >= 1"):
            paired_bootstrap([1.0, 2.0], **wrong)  # type: ignore[arg-type]
