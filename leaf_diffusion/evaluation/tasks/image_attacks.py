"""Image towers as classifiers, and attacks on the pixels that they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from leaf_diffusion.attacks.images import APGD, PGD, AttackedImages, Misclassify, pick
from leaf_diffusion.encoders.image_encoder import ImageEncoder
from leaf_diffusion.evaluation.tasks.images import ImageTask
from leaf_diffusion.runs.experiment_records import AttackedImage, ClassifiedImage

SCALE = 100.0
"""Of the cosines in the cross-entropy: that of CLIP's own logits."""
ImageAttackName = Literal["pgd", "apgd"]


@dataclass(frozen=True)
class Classifier:
    """The class whose feature [classes, d] is nearest to an image's (cosine). ValueError where images and class features,
    which come from `source`, do not live in one space."""

    encoder: ImageEncoder
    features: Tensor
    source: str

    def __post_init__(self) -> None:
        width = self.encoder.embed(torch.zeros(1, 3, *self.encoder.preprocessing.size)).shape[1]
        if width != self.features.shape[1]:
            raise ValueError(
                f"{self.encoder.name} has features of {width}, {self.source} of {self.features.shape[1]}: name the image "
                "and the text tower of one CLIP"
            )

    @cached_property
    def _classes(self) -> Tensor:
        return self.features.to(self.encoder.device).T.clone()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Scaled cosines [n, classes] of pixels 0 to 1."""
        return SCALE * normalize(self.encoder.features(pixels), dim=-1) @ self._classes

    def prepare(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixels 0 to 1 as the tower takes them, on its device."""
        return self.encoder.prepare(images).to(self.encoder.device)

    def said(self, pixels: Tensor) -> list[int]:
        """The class of each image."""
        with torch.no_grad():
            return [int(i) for i in self(pixels).argmax(1)]

    def same_pixels(self, other: Classifier) -> bool:
        """Whether both take the same pixels, so that an attacked image can be handed on."""
        return self.encoder.preprocessing.description == other.encoder.preprocessing.description

    def attack(
        self, name: ImageAttackName, pixels: Tensor, labels: Tensor, *, eps: float, steps: int, seed: int
    ) -> AttackedImages:
        """PGD on the cross-entropy; or APGD on the cross-entropy, then, for images that are still right, on the DLR loss
        (where there are three classes). `eps` of pixels 0 to 1."""
        labels = labels.to(pixels.device)
        objective = Misclassify(self, labels)
        if name == "pgd":
            return PGD(eps=eps, steps=steps)(pixels, objective, seed=seed)
        attack = APGD(eps=eps, steps=steps)
        found = attack(pixels, objective, seed=seed)
        left = torch.nonzero(found.score <= 0).flatten()
        if not len(left) or len(self.features) < 3:
            return found
        more = attack(pixels[left], Misclassify(self, labels[left], "dlr"), seed=seed)
        better = torch.zeros_like(found.score, dtype=torch.bool)
        better[left] = more.score > found.score[left]
        there = [found.pixels.clone(), found.score.clone(), found.distance.clone()]
        for whole, part in zip(there, (more.pixels, more.score, more.distance), strict=True):
            whole[left] = part
        return replace(
            found,
            pixels=pick(better, there[0], found.pixels),
            score=torch.where(better, there[1], found.score),
            distance=torch.where(better, there[2], found.distance),
        )


def default_eps(images: Path | None) -> float:
    """Of 255: the world's images of 32 pixels need more than the paper's 2 until nothing of the original holds."""
    return 4.0 if images is None else 2.0


def classify_attacked(
    classifiers: Mapping[str, Classifier],
    task: ImageTask,
    numbers: Sequence[int],
    attacks: Sequence[ImageAttackName],
    radii: Sequence[float],
    show: Callable[[str, int, Sequence[Image.Image]], list[str]],
    *,
    steps: int,
    seed: int,
    transfer: bool,
) -> list[ClassifiedImage]:
    """Some images of a task through every tower: clean, attacked on the tower itself and, with `transfer`, on the others.

    radii: eps of 255. `show` is given a name, an image's number and what the page shows of it (image, attacked image,
    difference) under the last attack at the first eps; what it returns is recorded.
    """
    images, labels = [task.load(i) for i in numbers], torch.tensor([task.labels[i] for i in numbers])
    pixels = {label: classify.prepare(images) for label, classify in classifiers.items()}
    said = {label: classifiers[label].said(x) for label, x in pixels.items()}
    attacked, shown = [list[AttackedImage]() for _ in numbers], [list[str]() for _ in numbers]
    for (source, x), attack, eps in product(pixels.items(), attacks, radii):
        mine = classifiers[source]
        found = mine.attack(attack, x, labels, eps=eps / 255, steps=steps, seed=seed)
        for label, other in classifiers.items():
            if label == source or (transfer and other.same_pixels(mine)):
                for rows, each in zip(attacked, other.said(found.pixels), strict=True):
                    rows.append(AttackedImage(encoder=label, source=source, attack=attack, eps=eps, said=each))
        if (attack, eps) == (attacks[-1], radii[0]):
            for i, number in enumerate(numbers):
                shown[i] += show(f"{source} {attack} {eps}", number, _side_by_side(x[i], found.pixels[i], eps / 255))
    return [
        ClassifiedImage(
            number=number,
            name=task.names[number],
            label=task.labels[number],
            said={label: each[i] for label, each in said.items()},
            attacked=attacked[i],
            images=shown[i],
        )
        for i, number in enumerate(numbers)
    ]


def _side_by_side(clean: Tensor, attacked: Tensor, eps: float) -> list[Image.Image]:
    """Image, attacked image and their difference (eps as black and white)."""
    parts = [clean, attacked, (attacked - clean) / (2 * eps) + 0.5]
    eight_bits = [part.mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy() for part in parts]
    return [Image.fromarray(part) for part in eight_bits]
