"""What an attacker maximises: drift from the clean meaning, a target, or a wrong label."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from leaf_diffusion.encoders.base import Feature, TextEncoder
from leaf_diffusion.encoders.features import SequenceFeature


@dataclass(frozen=True)
class Goal:
    """One prompt's goal: features [n, d] -> scores [n], larger = stronger attack; differentiable.

    `scale` (> 0) is the unit of the score where it depends on the tower (its squared feature norm for an L2 drift).
    A goal that compares with one vector says so: `compare(features [n, d], vectors [n, d])` is its score against each
    row's own vector, so that goals of one kind are computed together. `Goal.against` makes such goals.
    """

    score: Callable[[Tensor], Tensor]
    solved_above: float = math.inf
    scale: float = 1.0
    compare: Callable[[Tensor, Tensor], Tensor] | None = None
    vector: Tensor | None = None

    @classmethod
    def against(cls, compare: Callable[[Tensor, Tensor], Tensor], vector: Tensor, scale: float = 1.0) -> Goal:
        """The goal of comparing with one vector [d]; `compare` takes it as [1, d]."""
        return cls(lambda features: compare(features, vector[None]), scale=scale, compare=compare, vector=vector)

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return self.score(features)

    def solved(self, score: float) -> bool:
        """Whether an attack may stop here; a drift is never finished."""
        return score > self.solved_above


@runtime_checkable
class Objective(Protocol):
    """Names the feature it looks at and makes one `Goal` a prompt."""

    feature: Feature

    @property
    def name(self) -> str: ...

    def goals(self, encoder: TextEncoder, prompts: Sequence[str]) -> list[Goal]: ...


def clean_features(encoder: TextEncoder, prompts: Sequence[str], feature: Feature) -> Float[Tensor, "n d"]:
    """Features of the prompts as the encoder is given them (after its defence), one forward pass each."""
    rows = encoder.tokenize(encoder.preprocess(prompts))
    # one row at a time: then the anchor does not depend on which prompts share the call
    with torch.no_grad():
        return torch.cat([encoder.features([row], feature) for row in rows])


class Drift:
    """Distance from the clean embedding: squared L2 of unnormalised features (TextFARE), or 1 - cosine.

    The clean embedding is the attacked encoder's own, or `anchor`'s (TextFARE: the frozen original's).
    """

    def __init__(
        self, kind: Literal["l2", "cosine"] = "l2", anchor: TextEncoder | None = None, feature: Feature = "projected"
    ) -> None:
        if kind not in ("l2", "cosine"):
            raise ValueError(f'unknown drift {kind!r}; choose "l2" or "cosine"')
        self.kind, self.anchor, self.feature = kind, anchor, feature

    @property
    def name(self) -> str:
        anchored = f", anchor={self.anchor.name}" if self.anchor is not None else ""
        return f"drift({self.kind}{anchored}, {self.feature})"

    def goals(self, encoder: TextEncoder, prompts: Sequence[str]) -> list[Goal]:
        own = clean_features(encoder, prompts, self.feature)
        clean = own
        if self.anchor is not None:
            clean = clean_features(self.anchor, prompts, self.feature).to(own.device)
        if clean.shape != own.shape:
            raise ValueError(
                f"the anchor {self.anchor and self.anchor.name} gives {clean.shape[1]} features a prompt, "
                f"{encoder.name} gives {own.shape[1]}: they cannot be compared"
            )
        if self.kind == "cosine":
            return [Goal.against(_one_minus_cosine, row) for row in clean]
        return [Goal.against(squared_distance, row, _unit(tower)) for row, tower in zip(clean, own, strict=True)]


class Toward:
    """Cosine to a target, one a prompt: texts (through the attacked encoder) or features [n, d] (of images, say)."""

    def __init__(self, targets: Sequence[str] | Float[Tensor, "n d"], feature: Feature = "projected") -> None:
        if isinstance(targets, str):
            raise TypeError("Toward expects a list of targets, one a prompt: put the string in a list")
        self.targets, self.feature = targets, feature

    @property
    def name(self) -> str:
        return f"toward({self.feature})"

    def goals(self, encoder: TextEncoder, prompts: Sequence[str]) -> list[Goal]:
        _one_each("target", len(self.targets), len(prompts))
        if isinstance(self.targets, Tensor):
            rows = self.targets.to(encoder.device, torch.float32)
        else:
            rows = clean_features(encoder, self.targets, self.feature)
        return [Goal.against(_cosine, row) for row in rows]


class Margin:
    """Zero-shot classification by cosine: the best other class's logit minus the true one's; solved once above 0.

    `class_features` [c, d] (any norm), `labels` one class index a prompt.
    """

    def __init__(
        self, class_features: Float[Tensor, "c d"], labels: Sequence[int], feature: Feature = "projected"
    ) -> None:
        if class_features.ndim != 2 or len(class_features) < 2:
            raise ValueError(f"class_features must be [classes >= 2, d], got {tuple(class_features.shape)}")
        for i, label in enumerate(labels):
            if not 0 <= label < len(class_features):
                raise ValueError(f"label {i} is {label}, but there are {len(class_features)} classes")
        self.class_features, self.labels, self.feature = class_features, [int(label) for label in labels], feature

    @property
    def name(self) -> str:
        return f"margin({self.feature})"

    def goals(self, encoder: TextEncoder, prompts: Sequence[str]) -> list[Goal]:
        _one_each("label", len(self.labels), len(prompts))
        classes = normalize(self.class_features.detach().to(encoder.device, torch.float32), dim=-1)
        return [Goal(_margin(classes, label), solved_above=0.0) for label in self.labels]


def objective_for(encoder: TextEncoder, objective: Objective) -> Objective:
    """The objective of a pipeline's attack as one of its text encoders can be asked.

    One that has token states and nothing pooled (T5, a language model) is asked for the drift of its own feature where a CLIP
    is asked for that of a pooled state or of states at their places. An objective on sequence features is for every encoder.
    ValueError for a target, a margin or an anchor in a CLIP's space, of which such an encoder knows nothing.
    """
    if isinstance(objective.feature, SequenceFeature) or not isinstance(encoder.own_feature, SequenceFeature):
        return objective
    if isinstance(objective, Drift) and objective.anchor is None:
        return Drift(objective.kind, feature=encoder.own_feature)
    raise ValueError(
        f"{objective.name} compares {objective.feature} features, and {encoder.name} has token states alone: attack the CLIPs by "
        "their names (encoders=...), or give an objective on Readout() or MeanState()"
    )


def squared_distance(features: Float[Tensor, "n d"], vectors: Float[Tensor, "m d"]) -> Float[Tensor, " n"]:
    """The squared L2 distance of each row to its vector, or to the only one."""
    return (features.float() - vectors).square().sum(-1)


def _one_minus_cosine(features: Tensor, vectors: Tensor) -> Tensor:
    return 1 - _cosine(features, vectors)


def _cosine(features: Tensor, vectors: Tensor) -> Tensor:
    if features.shape[-1] != vectors.shape[-1]:
        raise ValueError(f"the target has {vectors.shape[-1]} features, the encoder gives {features.shape[-1]}")
    return (normalize(features, dim=-1) * normalize(vectors, dim=-1)).sum(-1)


def _margin(classes: Tensor, label: int) -> Callable[[Tensor], Tensor]:
    others = [i for i in range(len(classes)) if i != label]

    def score(features: Tensor) -> Tensor:
        if features.shape[-1] != classes.shape[-1]:
            raise ValueError(
                f"class_features have {classes.shape[-1]} features, the encoder gives {features.shape[-1]}"
            )
        logits = normalize(features, dim=-1) @ classes.T
        return logits[:, others].amax(-1) - logits[:, label]

    return score


def _unit(clean: Tensor) -> float:
    return max(float(clean.square().sum()), 1e-12)


def _one_each(what: str, given: int, prompts: int) -> None:
    if given != prompts:
        raise ValueError(f"{given} {what}s for {prompts} prompts: give exactly one {what} a prompt, in the same order")
