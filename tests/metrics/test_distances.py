"""Distances between sets against independent references."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from leaf_diffusion.metrics import cmmd, frechet_distance, kid
from leaf_diffusion.metrics.frechet import _few, _many


class Flat(nn.Module):
    """Images that are features already, as torchmetrics' custom feature extractor."""

    num_features = 12
    input_img_size = (3, 2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).float()


def sets(n: int, m: int, seed: int = 0, shift: float = 20.0) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images [n, 3, 2, 2] and [m, 3, 2, 2]."""
    rng = np.random.default_rng(seed)
    pair = [rng.normal(100 + shift * i, 20 + 5 * i, size=(count, 3, 2, 2)) for i, count in enumerate((n, m))]
    return tuple(torch.tensor(x.clip(0, 255).astype(np.uint8)) for x in pair)


def test_frechet_equals_torchmetrics_fid() -> None:
    a, b = sets(60, 80)
    reference = FrechetInceptionDistance(feature=Flat())
    reference.set_dtype(torch.float64)
    reference.update(a, real=True)
    reference.update(b, real=False)
    found = frechet_distance(a.flatten(1), b.flatten(1))
    assert float(found) == pytest.approx(float(reference.compute()), rel=1e-5)
    assert (found.n, found.m, found.d) == (60, 80, 12)


def test_frechet_of_known_gaussians_and_of_few_images() -> None:
    line = np.linspace(-1, 1, 41)[:, None]
    std = np.std(line, ddof=1)
    assert float(frechet_distance(line, 3 * line + 5)) == pytest.approx(25 + (2 * std) ** 2)
    few = np.random.default_rng(0).normal(size=(5, 64))
    assert float(frechet_distance(few, few)) == pytest.approx(0, abs=1e-8)
    # singular covariances: still the formula's value, here with orthogonal supports
    x, y = np.zeros((2, 4)), np.zeros((2, 4))
    x[:, 0], y[:, 1] = [-1, 1], [-1, 1]
    assert float(frechet_distance(x, y)) == pytest.approx(4)


@pytest.mark.parametrize(("n", "m", "d"), [(40, 30, 12), (12, 13, 12), (12, 12, 12), (5, 30, 12), (30, 2, 12)])
def test_frechet_is_the_same_by_images_and_by_dimensions(n: int, m: int, d: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d)), rng.normal(2, 3, size=(m, d))
    centred = [(each - each.mean(0)) / np.sqrt(len(each) - 1) for each in (x, y)]
    assert _few(*centred) == pytest.approx(_many(*centred), rel=1e-5)
    # the definition: the eigenvalues of the product of the covariances
    product = np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)
    cross = np.sqrt(np.clip(np.linalg.eigvals(product).real, 0, None)).sum()
    assert _few(*centred) == pytest.approx(cross, rel=1e-5)


def test_frechet_is_biased_upwards_while_images_are_few() -> None:
    rng = np.random.default_rng(3)
    found = [float(frechet_distance(*rng.normal(size=(2, n, 32)))) for n in (8, 32, 512)]
    assert found[0] > 1.5 * found[1] > 3 * found[2]


def test_kid_equals_torchmetrics() -> None:
    a, b = sets(50, 50)
    reference = KernelInceptionDistance(feature=Flat(), subsets=3, subset_size=50)
    reference.update(a, real=True)
    reference.update(b, real=False)
    mean, _ = reference.compute()
    found = kid(a.flatten(1), b.flatten(1), subsets=3, subset_size=50)
    assert float(found) == pytest.approx(float(mean), rel=1e-4)
    assert found.std == pytest.approx(0, abs=1e-6 * abs(found.value))


def test_kid_is_unbiased_at_few_images() -> None:
    rng = np.random.default_rng(1)
    values = [float(kid(rng.normal(size=(6, 3)), rng.normal(size=(6, 3)), subsets=1)) for _ in range(800)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


def test_cmmd_equals_plain_loops() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(7, 5)), rng.normal(1, 1, size=(4, 5))

    def kernel(left: np.ndarray, right: np.ndarray) -> float:
        left, right = ([v / np.sqrt(sum(v * v)) for v in side] for side in (left, right))  # type: ignore[assignment]
        return float(np.mean([[np.exp(-sum((p - q) ** 2) / 200) for q in right] for p in left]))

    expected = 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))
    assert float(cmmd(a, b)) == pytest.approx(expected, rel=1e-9)
    assert float(cmmd(a, 3 * a)) == pytest.approx(0, abs=1e-9)  # directions only


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 12), m=st.integers(2, 12), d=st.integers(1, 6), seed=st.integers(0, 99))
def test_frechet_and_cmmd_are_symmetric_and_not_negative(n: int, m: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d)), rng.normal(1, 2, size=(m, d))
    for measure in (frechet_distance, cmmd):
        there, back = float(measure(a, b)), float(measure(b, a))
        assert there == pytest.approx(back, rel=1e-6, abs=1e-9)
        assert there >= 0


@pytest.mark.parametrize("measure", [frechet_distance, kid, cmmd])
def test_wrong_features_are_refused(measure: object) -> None:
    good = np.ones((4, 3))
    with pytest.raises(ValueError, match="dimension: 3 and 2"):
        measure(good, np.ones((4, 2)))  # type: ignore[operator]
    with pytest.raises(ValueError, match="needed: \\[images, dimensions\\]"):
        measure(np.ones(3), good)  # type: ignore[operator]
    with pytest.raises(ValueError, match="second feature set holds NaN"):
        measure(good, good * np.nan)  # type: ignore[operator]
    with pytest.raises(ValueError, match="holds 0 images"):
        measure(good[:0], good)  # type: ignore[operator]
