"""What an attacker of retrieval wants, and its attacks on captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from leaf_diffusion.attacks import Attack
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.evaluation.tasks.units import attacked
from leaf_diffusion.runs.experiment_records import AttackedCaption, AttackedCaptions
from leaf_diffusion.scoring.objectives import Drift, Margin, Objective, Toward
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import constraint_from_name

Goal = Literal["drift", "margin", "toward"]


@dataclass(frozen=True)
class Goals:
    """The goals of a run. images: features [images, d] of length 1; targets: numbers of images that "toward" goes for, by
    their captions or, with `by_image`, by the images themselves."""

    names: Sequence[Goal]
    images: Tensor
    captions: Sequence[str]
    targets: Sequence[int]
    by_image: bool

    def objectives(self, queries: Sequence[int]) -> list[tuple[Goal, int | None, Objective]]:
        """(goal, target, objective for the captions of `queries`)"""
        made: list[tuple[Goal, int | None, Objective]] = []
        for goal in self.names:
            if goal == "drift":
                made.append((goal, None, Drift("cosine")))
            elif goal == "margin":
                made.append((goal, None, Margin(self.images, queries)))
            else:
                made += [(goal, target, self._toward(target, len(queries))) for target in self.targets]
        return made

    def _toward(self, target: int, n: int) -> Toward:
        return Toward(self.images[target].expand(n, -1) if self.by_image else [self.captions[target]] * n)


def attack_captions(
    encoder: TextEncoder,
    label: str,
    goals: Goals,
    queries: Sequence[int],
    *,
    attack: Attack,
    ks: Sequence[int],
    constraint: str,
    seed: int,
) -> list[AttackedCaptions]:
    """Every goal's attack on each caption, on one encoder."""
    found, texts = [list[AttackedCaption]() for _ in queries], [goals.captions[query] for query in queries]
    rule = constraint_from_name(constraint)
    for goal, target, objective in goals.objectives(queries):
        for k, results in attack.path(texts, Scorer(encoder, objective), ks, constraint=rule, seed=seed).items():
            for mine, result in zip(found, results, strict=True):
                row = attacked(result, label, k, attack.label, constraint)
                mine.append(AttackedCaption(goal=goal, target=target, **dict(row)))
    return [AttackedCaptions(encoder=label, number=i, attacked=mine) for i, mine in zip(queries, found, strict=True)]
