"""PGD and APGD against an independent APGD, against a model whose worst pixels are known, and their own limits."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leaf_diffusion.attacks.images import (
    APGD,
    PGD,
    Best,
    FeatureDrift,
    ImageAttack,
    Misclassify,
    checkpoints,
    project,
)
from tests import tiny

EPS = 8 / 255


@pytest.fixture(scope="module")
def classify() -> Callable[[Tensor], Tensor]:
    """A tiny image tower in float64 and 5 class features: what a difference of rounding cannot lead astray."""
    tower = tiny.image_tower(1, image_size=8, patch_size=4).double().requires_grad_(False)
    classes = nn.functional.normalize(torch.randn(8, 5, dtype=torch.float64), dim=0)

    def logits(pixels: Tensor) -> Tensor:
        features = tower.visual_projection(tower.vision_model(pixels * 2 - 1).pooler_output)
        return 20 * nn.functional.normalize(features, dim=-1) @ classes

    return logits


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def labels_of(classify: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.no_grad():
        return classify(images).argmax(1)


def one_apgd(
    f: Callable[[np.ndarray], float],
    gradient: Callable[[np.ndarray], np.ndarray],
    x0: np.ndarray,
    start: np.ndarray,
    eps: float,
    n: int,
) -> tuple[np.ndarray, float, int]:
    """Croce and Hein 2020, algorithm 1, for one image, with every iterate kept: (x_max, f_max, halvings)."""

    def inside(z: np.ndarray) -> np.ndarray:
        return np.clip(np.minimum(np.maximum(z, x0 - eps), x0 + eps), 0.0, 1.0)

    p = [0.0, 0.22]
    while p[-1] + max(p[-1] - p[-2] - 0.03, 0.06) <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = [math.ceil(round(share * n, 9)) for share in p]
    x, eta = [start], [2 * eps]
    value = [f(start)]
    x_max, f_max, f_max_at = start, value[0], {0: value[0]}
    rose, halvings = {}, 0
    for k in range(n):
        z = inside(x[k] + eta[k] * np.sign(gradient(x[k])))
        new = z if k == 0 else inside(x[k] + 0.75 * (z - x[k]) + 0.25 * (x[k] - x[k - 1]))
        reached = f(new)
        rose[k] = reached > value[k]
        if reached > f_max:
            x_max, f_max = new, reached
        x.append(new)
        value.append(reached)
        eta.append(eta[k])
        f_max_at[k + 1] = f_max
        if k + 1 in w:
            j = w.index(k + 1)
            first = sum(rose[i] for i in range(w[j - 1], w[j])) < 0.75 * (w[j] - w[j - 1])
            second = eta[w[j]] == eta_used(eta, w[j - 1]) and f_max_at[w[j]] == f_max_at[w[j - 1]]
            if first or second:
                eta[k + 1] = eta[k] / 2
                x[k + 1], value[k + 1] = x_max, f_max
                halvings += 1
    return x_max, f_max, halvings


def eta_used(eta: list[float], w: int) -> float:
    """The step size before whatever was decided at checkpoint `w`: that of the step that led there."""
    return eta[max(w - 1, 0)]


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_agrees_with_an_independent_implementation(
    loss: str, classify: Callable[[Tensor], Tensor], images: Tensor
) -> None:
    labels, steps = labels_of(classify, images), 40
    noise = torch.rand(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    start = project(images + EPS * noise, images, EPS)

    def objective(i: int) -> Callable[[Tensor], Tensor]:
        def alone(x: Tensor) -> Tensor:  # the losses of the paper, written out
            z, y = classify(x[None])[0], int(labels[i])
            if loss == "ce":
                return torch.logsumexp(z, 0) - z[y]
            others = max(float(z[j]) for j in range(5) if j != y)
            best_other = next(z[j] for j in range(5) if j != y and float(z[j]) == others)
            ranked = z.sort(descending=True).values
            return -(z[y] - best_other) / (ranked[0] - ranked[2] + 1e-12)

        return alone

    seen = Best(images, torch.full((6,), -torch.inf, dtype=torch.float64))
    mine = Misclassify(classify, labels, loss)  # type: ignore[arg-type]
    losses: list[Tensor] = []

    class Watched:
        def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
            found, margin = mine(x)
            losses.append(found.detach())
            return found, margin

    APGD(eps=EPS, steps=steps).run(images, Watched(), start, seen)  # type: ignore[arg-type]
    halved = 0
    for i in range(6):
        loss_of = objective(i)

        def f(x: np.ndarray, loss_of: Callable[[Tensor], Tensor] = loss_of) -> float:
            return float(loss_of(torch.from_numpy(x)))

        def gradient(x: np.ndarray, loss_of: Callable[[Tensor], Tensor] = loss_of) -> np.ndarray:
            point = torch.from_numpy(x).requires_grad_()
            return torch.autograd.grad(loss_of(point), point)[0].numpy()

        _, best, halvings = one_apgd(f, gradient, images[i].numpy(), start[i].numpy(), EPS, steps)
        assert best == pytest.approx(float(torch.stack(losses)[:, i].max()), rel=1e-9)
        halved += halvings
    assert halved > 0  # both reasons to halve were met on the way


def test_dlr_by_hand() -> None:
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0], [4.0, 1.0, 3.0, 0.0]])
    loss, margin = Misclassify(lambda _: logits, torch.tensor([0, 2]), "dlr")(torch.zeros(2, 3, 1, 1))
    assert loss.tolist() == pytest.approx([-(4 - 3) / (4 - 1), -(3 - 4) / (4 - 1)])
    assert margin.tolist() == [-1.0, 1.0]
    with pytest.raises(ValueError, match="three classes"):
        Misclassify(lambda _: logits[:, :2], torch.tensor([0, 1]), "dlr")(torch.zeros(2, 3, 1, 1))


def test_checkpoints_are_the_papers() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("attack", [PGD(eps=EPS, steps=10), APGD(eps=EPS, steps=10)], ids=lambda a: a.name)
def test_the_worst_pixels_of_a_linear_model_are_found(attack: ImageAttack) -> None:
    torch.manual_seed(0)
    images, weights = torch.rand(4, 3, 5, 5), torch.randn(3, 5, 5)

    class Linear:
        def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
            value = (x * weights).flatten(1).sum(1)
            return value, value.detach()

    found = attack(images, Linear())  # type: ignore[arg-type]
    worst = (images + EPS * weights.sign()).clamp(0, 1)
    torch.testing.assert_close(found.pixels, worst, atol=2e-6, rtol=0)
    torch.testing.assert_close(found.score, (worst * weights).flatten(1).sum(1))


@pytest.mark.parametrize("attack", [PGD(eps=EPS), APGD(eps=EPS, steps=15)], ids=lambda a: a.name)
def test_results_stay_in_the_ball_and_follow_from_image_and_seed(
    attack: ImageAttack, classify: Callable[[Tensor], Tensor], images: Tensor
) -> None:
    labels = labels_of(classify, images)
    found = attack(images, Misclassify(classify, labels), seed=5)
    assert bool((found.pixels >= 0).all() and (found.pixels <= 1).all())
    assert float((found.pixels - images).abs().max()) <= EPS + 1e-9
    logits = classify(found.pixels)
    for i in range(6):  # the margin, measured again
        others = torch.cat([logits[i, : labels[i]], logits[i, labels[i] + 1 :]])
        assert float(found.score[i]) == pytest.approx(float(others.max() - logits[i, labels[i]]))
    assert bool((found.score >= found.clean_score).all()) and float((found.score - found.clean_score).max()) > 0
    order = torch.tensor([4, 1, 0])
    again = attack(images[order], Misclassify(classify, labels).subset(order), seed=5)
    torch.testing.assert_close(again.pixels, found.pixels[order])
    other = attack(images, Misclassify(classify, labels), seed=6)
    assert not torch.equal(other.pixels, found.pixels)


def test_drift_is_the_squared_distance_of_features() -> None:
    pixels = torch.rand(3, 3, 2, 2)
    loss, score = FeatureDrift(lambda x: x.flatten(1), torch.zeros(3, 12))(pixels)
    torch.testing.assert_close(loss, pixels.pow(2).sum((1, 2, 3)))
    torch.testing.assert_close(loss, score)


class Leaves(ImageAttack):
    name = "leaves"

    def run(self, pixels: Tensor, objective: object, start: Tensor, best: Best) -> None:
        best.see(pixels + 2 * self.eps, torch.full((len(pixels),), 9.0))


def test_an_attack_that_leaves_its_ball_and_bad_input_are_refused() -> None:
    drift = FeatureDrift(lambda x: x.flatten(1), torch.zeros(2, 12))
    with pytest.raises(RuntimeError, match="left its ball"):
        Leaves(eps=0.1, steps=1)(torch.full((2, 3, 2, 2), 0.5), drift)
    with pytest.raises(ValueError, match="in 0 to 1"):
        PGD(eps=0.1)(torch.full((2, 3, 2, 2), 1.5), drift)
    with pytest.raises(ValueError, match="eps"):
        PGD(eps=0.0)
    with pytest.raises(ValueError, match="steps"):
        APGD(eps=0.1, steps=0)
    assert len(PGD(eps=0.1)(torch.empty(0, 3, 2, 2), drift).pixels) == 0
