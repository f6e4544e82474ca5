"""Pairs of an image and a text tower, and what they make of the same images, clean and attacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leaf_diffusion.attacks import Attack
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.image_encoder import ImageEncoder
from leaf_diffusion.evaluation.options import check_edits
from leaf_diffusion.evaluation.results import Setting
from leaf_diffusion.evaluation.tasks.image_attacks import Classifier
from leaf_diffusion.evaluation.tasks.images import ImageTask
from leaf_diffusion.evaluation.tasks.options import ImageOptions, LabelledTextOptions, check_counts
from leaf_diffusion.evaluation.tasks.text import Task
from leaf_diffusion.evaluation.tasks.units import attacked
from leaf_diffusion.reports.metrics import BOTH_TEXT_ACCURACY
from leaf_diffusion.runs.experiment_records import PairImage, PairText
from leaf_diffusion.scoring.objectives import Margin
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import constraint_from_name


@dataclass(frozen=True, kw_only=True)
class BothDomainsOptions(LabelledTextOptions, ImageOptions):
    """Zero-shot accuracy in both domains, clean and attacked, of every image tower with every text tower."""

    encoders: tuple[str, ...] = ("original", "leaf")
    """Text towers: the original, then robust ones; as everywhere."""
    image_encoders: tuple[str, ...] = ("original", "fare")
    """Image towers of the same CLIP: the original, then robust ones."""
    limit: int | None = 192
    """Number of images, spread over the classes."""
    eps: float | None = None
    """How far a pixel may move, in steps of 1/255. Default: 4 for the world, else 2, as in the paper."""
    k: int = 1

    def __post_init__(self) -> None:
        check_counts(self, "limit", "text_limit", "attack_steps", "batch_size", "per_class")
        check_edits((self.k,), self.attack)
        if self.eps is not None and not 0 < self.eps <= 255:
            raise ValueError(f"--eps is above 0 and up to 255, got {self.eps}")

    def main_setting(self, labels: Sequence[str]) -> Setting:
        """The texts that the last pair of towers keeps right under attack."""
        place = ("adaptive", labels[-1], self.attack.label, self.constraint, self.k)
        return Setting(labels[-1], BOTH_TEXT_ACCURACY.key, *place, more=(("eps", 0.0),))


@dataclass(frozen=True)
class TowerPair:
    """`classify` finds the class of an image by the text tower's class features; `anchors` are the texts' classes, [classes,
    d], as the image tower sees them, or as the text tower does where there are no images of them."""

    encoder: TextEncoder
    classify: Classifier
    anchors: Tensor


def tower_pairs(
    towers: Mapping[str, ImageEncoder],
    encoders: Mapping[str, TextEncoder],
    images: ImageTask,
    texts: Task,
    seen: Callable[[ImageEncoder, Sequence[str]], Tensor | None],
) -> dict[str, TowerPair]:
    """Every pair by "image tower + text tower"; `seen` gives classes as an image tower sees them.

    Raises ValueError where two towers are not of one CLIP.
    """
    anchors = {label: seen(tower, texts.classes) for label, tower in towers.items()}
    pairs = {}
    for text, encoder in encoders.items():
        classes = images.class_features(encoder)
        for image, tower in towers.items():
            own = anchors[image]
            classify = Classifier(tower, classes, f"the text encoder {text}")
            pairs[f"{image} + {text}"] = TowerPair(encoder, classify, texts.anchors(encoder) if own is None else own)
    return pairs


def measure_images(
    pairs: Mapping[str, TowerPair], task: ImageTask, numbers: Sequence[int], *, eps: float, steps: int, seed: int
) -> list[PairImage]:
    """Some images in every pair of towers: clean and under APGD on that pair. `eps` of pixels 0 to 1."""
    images, labels = [task.load(i) for i in numbers], torch.tensor([task.labels[i] for i in numbers])
    right, held = [dict[str, bool]() for _ in numbers], [dict[str, bool]() for _ in numbers]
    for row, pair in pairs.items():
        pixels = pair.classify.prepare(images)
        found = pair.classify.attack("apgd", pixels, labels, eps=eps, steps=steps, seed=seed)
        for i, (clean, score) in enumerate(zip(found.clean_score, found.score, strict=True)):
            right[i][row], held[i][row] = bool(clean <= 0), bool(score <= 0)
    return [
        PairImage(number=i, name=task.names[i], right=clean, held=attacked)
        for i, clean, attacked in zip(numbers, right, held, strict=True)
    ]


def measure_texts(
    row: str, pair: TowerPair, task: Task, numbers: Sequence[int], *, attack: Attack, k: int, constraint: str
) -> list[PairText]:
    """Some texts of the pair of towers `row`: clean and under the attack, which maximises the margin of the best wrong
    class."""
    objective = Margin(pair.anchors, [task.labels[i] for i in numbers])
    texts, rule = [task.texts[i] for i in numbers], constraint_from_name(constraint)
    results = attack(texts, Scorer(pair.encoder, objective), k=k, constraint=rule)
    return [
        PairText(
            row=row,
            number=i,
            right=result.clean_score <= 0,
            held=result.score <= 0,
            **dict(attacked(result, row, k, attack.label, constraint)),
        )
        for i, result in zip(numbers, results, strict=True)
    ]
