"""Attacks on images within an l-inf ball: PGD and APGD, and what they climb.

PGD: Madry et al. 2018. APGD and the DLR loss: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an
ensemble of diverse parameter-free attacks", algorithm 1 and equation 6. The evaluations of the paper and FARE use both.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, Self, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

Pixels = Float[Tensor, "n 3 h w"]
ROUNDING = 1e-6
"""How far float32 may lead out of the ball."""


class ImageObjective(Protocol):
    """What an attack maximises, for images 0 to 1 in a fixed order."""

    def __call__(self, pixels: Pixels) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """(loss, whose gradient is followed; score, by which the best point is kept) of each image."""
        ...

    def subset(self, which: Int[Tensor, "m"]) -> Self:
        """The objective of these images alone."""
        ...


@dataclass(frozen=True)
class FeatureDrift:
    """The squared L2 distance of features to `anchors` [n, d]: the loss of FARE, without labels. Loss and score are one."""

    features: Callable[[Tensor], Tensor]
    anchors: Float[Tensor, "n d"]

    def __call__(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        loss = (self.features(pixels).float() - self.anchors).square().sum(-1)
        return loss, loss.detach()

    def subset(self, which: Tensor) -> FeatureDrift:
        return replace(self, anchors=self.anchors[which])


@dataclass(frozen=True)
class Misclassify:
    """Another class than `labels` [n] by `logits` (pixels -> [n, classes]); the score is the margin of the best wrong class,
    above 0 once the label flips.

    `loss`: "ce", the cross-entropy, or "dlr", the margin over the gap between the first and third logit, which no scale of
    the logits changes (three classes at the least).
    """

    logits: Callable[[Tensor], Tensor]
    labels: Int[Tensor, "n"]
    loss: Literal["ce", "dlr"] = "ce"

    def __call__(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        logits, labels = self.logits(pixels), self.labels[:, None]
        if self.loss == "dlr" and logits.shape[1] < 3:
            raise ValueError(f"the DLR loss needs three classes, there are {logits.shape[1]}: use the cross-entropy")
        right = logits.gather(1, labels)[:, 0]
        margin = logits.scatter(1, labels, -torch.inf).amax(1) - right
        if self.loss == "ce":
            return cross_entropy(logits, self.labels, reduction="none"), margin.detach()
        top = logits.topk(3, dim=1).values
        return margin / (top[:, 0] - top[:, 2] + 1e-12), margin.detach()

    def subset(self, which: Tensor) -> Misclassify:
        return replace(self, labels=self.labels[which])


@dataclass(frozen=True)
class AttackedImages:
    """Images [n, 3, h, w] in 0 to 1 with scores [n], all measured after the attack; distance: l-inf, of 1."""

    pixels: Pixels
    score: Float[Tensor, "n"]
    clean_score: Float[Tensor, "n"]
    distance: Float[Tensor, "n"]


@dataclass(frozen=True, kw_only=True)
class ImageAttack(ABC):
    """An attack within l-inf distance `eps` (of pixels 0 to 1) of each image; calling it also verifies the outcome.

    It starts at a random point of the ball that follows from (seed, image) alone, and returns the point of highest
    score that it came by, the clean image among them; so no score falls below the clean one.
    """

    name: ClassVar[str]
    eps: float
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 1 or self.steps < 1:
            raise ValueError(
                f"eps lies between 0 and 1 (2/255, say) and steps from 1 on, got {self.eps} and {self.steps}"
            )

    @final
    def __call__(self, pixels: Pixels, objective: ImageObjective, *, seed: int = 0) -> AttackedImages:
        """Attack images in 0 to 1. ValueError for other pixels, RuntimeError if the attack left its ball."""
        if pixels.ndim != 4 or not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise ValueError(f"images are [n, 3, h, w] in 0 to 1, these are {tuple(pixels.shape)}")
        pixels = pixels.detach()
        if not len(pixels):
            return AttackedImages(pixels, *(pixels.new_empty(0) for _ in range(3)))
        best = self.search(pixels, objective, seed)
        with torch.no_grad():
            clean = objective(pixels)[1]
            best.see(pixels, clean)
            score = objective(best.pixels)[1]
        far = (best.pixels - pixels).abs().flatten(1).amax(1)
        if float(far.max()) > self.eps + ROUNDING or bool(((best.pixels < 0) | (best.pixels > 1)).any()):
            raise RuntimeError(
                f"{self.name} left its ball: {float(far.max())} of {self.eps}, "
                f"pixels {float(best.pixels.min())} to {float(best.pixels.max())}"
            )
        return AttackedImages(best.pixels, score, clean, far)

    @final
    def search(self, pixels: Pixels, objective: ImageObjective, seed: int = 0) -> Best:
        """What the attack comes by, unverified and without the clean image: for a training step."""
        noise = torch.stack([_noise(image, seed) for image in pixels]).to(pixels)
        best = Best(pixels, pixels.new_full((len(pixels),), -torch.inf))
        with torch.enable_grad():
            self.run(pixels, objective, project(pixels + self.eps * noise, pixels, self.eps), best)
        return best

    @abstractmethod
    def run(self, pixels: Pixels, objective: ImageObjective, start: Pixels, best: Best) -> None:
        """The attack itself: it shows `best` every point that it evaluates."""


@dataclass
class Best:
    """The points of highest score so far."""

    pixels: Pixels
    score: Float[Tensor, "n"]

    def see(self, pixels: Pixels, score: Float[Tensor, "n"]) -> None:
        better = score > self.score
        self.pixels, self.score = pick(better, pixels, self.pixels), torch.where(better, score, self.score)


@dataclass(frozen=True, kw_only=True)
class PGD(ImageAttack):
    """Steps of `step_size` (default: 2.5 eps / steps) along the gradient's sign, each projected into the ball."""

    name: ClassVar[str] = "pgd"
    steps: int = 10
    step_size: float | None = None

    def run(self, pixels: Pixels, objective: ImageObjective, start: Pixels, best: Best) -> None:
        size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        x = start
        for _ in range(self.steps):
            _, gradient = _climb(x, objective, best)
            x = project(x + size * gradient.sign(), pixels, self.eps)
        with torch.no_grad():
            best.see(x, objective(x)[1])


@dataclass(frozen=True, kw_only=True)
class APGD(ImageAttack):
    """Momentum, and a step that starts at 2 eps and is halved at checkpoints for images that oscillate or stand still;
    these go on from their point of highest loss. `rho`: the share of rising steps below which an image oscillates.
    """

    name: ClassVar[str] = "apgd"
    steps: int = 100
    rho: float = 0.75
    momentum: float = 0.75
    """alpha of the paper: the weight of the new step."""

    def run(self, pixels: Pixels, objective: ImageObjective, start: Pixels, best: Best) -> None:
        x = previous = start
        loss, gradient = _climb(x, objective, best)
        step = torch.full_like(loss, 2 * self.eps)
        top, top_loss, top_gradient = x, loss, gradient
        rises, last, step_then, top_then = torch.zeros_like(loss), 0, step, top_loss
        ends = checkpoints(self.steps)
        for k in range(1, self.steps + 1):
            new = project(x + step.view(-1, 1, 1, 1) * gradient.sign(), pixels, self.eps)
            if k > 1:
                moved = self.momentum * (new - x) + (1 - self.momentum) * (x - previous)
                new = project(x + moved, pixels, self.eps)
            previous, x, loss_before = x, new, loss
            loss, gradient = _climb(x, objective, best)
            rises = rises + (loss > loss_before)
            better = loss > top_loss
            top, top_gradient = pick(better, x, top), pick(better, gradient, top_gradient)
            top_loss = torch.where(better, loss, top_loss)
            if k in ends:
                oscillates = rises < self.rho * (k - last)
                stands_still = (step == step_then) & (top_loss == top_then)
                halve = oscillates | stands_still
                step_then, top_then = step, top_loss
                step = torch.where(halve, step / 2, step)
                x, gradient = pick(halve, top, x), pick(halve, top_gradient, gradient)
                loss = torch.where(halve, top_loss, loss)
                rises, last = torch.zeros_like(rises), k


def checkpoints(steps: int) -> list[int]:
    """After which steps APGD looks whether to halve: at shares 0.22, 0.41, 0.57, ... of them, closer and closer."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return [math.ceil(share * steps - 1e-9) for share in shares[1:] if share <= 1]


def project(x: Pixels, pixels: Pixels, eps: float) -> Pixels:
    """Into the ball around `pixels` and into 0 to 1."""
    return torch.minimum(torch.maximum(x, pixels - eps), pixels + eps).clamp(0, 1)


def pick(which: Tensor, there: Tensor, here: Tensor) -> Tensor:
    """Images of `there` where `which` [n] says so, else of `here`."""
    return torch.where(which.view(-1, 1, 1, 1), there, here)


def _climb(x: Pixels, objective: ImageObjective, best: Best) -> tuple[Tensor, Tensor]:
    """Loss [n] and its gradient at `x`, which `best` sees."""
    x = x.detach().requires_grad_()
    loss, score = objective(x)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    best.see(x.detach(), score)
    return loss.detach(), gradient


def _noise(image: Tensor, seed: int) -> Tensor:
    """Uniform in -1 to 1, from (seed, image) alone."""
    content = image.detach().float().cpu().contiguous().numpy().tobytes()
    digest = hashlib.sha256(f"{seed}\n".encode() + content).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    return torch.from_numpy(rng.uniform(-1, 1, tuple(image.shape)))
