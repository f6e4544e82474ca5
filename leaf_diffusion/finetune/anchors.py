"""The original's features, which the trained tower's of attacked captions are drawn back to: losses and attack."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from leaf_diffusion.attacks import Attack
from leaf_diffusion.attacks.base import Problem
from leaf_diffusion.encoders.base import Feature, TextEncoder
from leaf_diffusion.encoders.features import MeanState, Readout, SequenceFeature
from leaf_diffusion.scoring import Goal, Precision, Scorer
from leaf_diffusion.scoring.objectives import squared_distance
from leaf_diffusion.scoring.plain import PlainScore
from leaf_diffusion.text import Constraint


def textfare_loss(encoder_features: Float[Tensor, "n d"], anchor_features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean over examples of the squared L2 distance (sum over features) between unnormalised embeddings: the trained
    tower's of the perturbed example and the frozen original's of the clean one."""
    if encoder_features.shape != anchor_features.shape:
        shapes = f"{tuple(encoder_features.shape)} do not fit the anchor's {tuple(anchor_features.shape)}"
        raise ValueError(f"features {shapes}")
    return (encoder_features.float() - anchor_features.float()).square().sum(-1).mean()


def sequence_loss(features: Float[Tensor, "n d"], anchors: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean over examples of the squared L2 distance over the anchor's own squared norm: for what the token states say, whose
    scale is no encoder's choice."""
    apart = (features.float() - anchors.float()).square().sum(-1)
    return (apart / anchors.float().square().sum(-1).clamp(min=1e-12)).mean()


def relative(features: Float[Tensor, "n d"], anchors: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """`textfare_loss` over the anchors' mean squared norm."""
    return textfare_loss(features, anchors) / anchors.square().sum(-1).mean()


def distances(given: Mapping[str, Tensor], targets: Float[Tensor, "n d"]) -> dict[str, float]:
    """`drift_*` (`relative`) and `cosine_*` of features [n, d] by name, means over examples."""
    found, unit = dict[str, float](), float(targets.square().sum(-1).mean())
    for name, features in given.items():
        found[f"drift_{name}"] = float(textfare_loss(features, targets)) / unit
        found[f"cosine_{name}"] = float(cosine_similarity(features, targets).mean())
    return found


def states_loss(
    states: Float[Tensor, "n t width"], anchor: Float[Tensor, "n t width"], begins: Sequence[int]
) -> Float[Tensor, ""]:
    """Mean over token positions, from `begins` on in each caption, of the squared L2 distance (sum over the width)
    between the trained tower's last states and the frozen original's: what a denoiser is conditioned on.

    A clean caption is compared from its first token on (0), an attacked one from where both have ended: the tokens
    before do not correspond, the padding behind does.
    """
    if states.shape != anchor.shape or len(begins) != len(states):
        raise ValueError(
            f"states {tuple(states.shape)} and {len(begins)} begins do not fit the anchor's {tuple(anchor.shape)}"
        )
    first = torch.tensor(list(begins), device=states.device)[:, None]
    counted = torch.arange(states.shape[1], device=states.device) >= first
    return (states.float() - anchor.float()).square().sum(-1)[counted].mean()


FEATURES: dict[str, SequenceFeature] = {"readout": Readout(), "mean-state": MeanState()}


def learnt(encoder: TextEncoder, feature: str = "own") -> Feature:
    """What of a tower is drawn back: the projected embedding, as in the paper, or the pooled state of a tower without a
    projection (the text encoder of a Stable Diffusion); of an encoder that is no CLIP, or where asked for, what its token
    states say."""
    if feature != "own":
        return FEATURES[feature]
    if isinstance(encoder.own_feature, SequenceFeature):
        return encoder.own_feature
    return "projected" if encoder.has_projection else "pooled"


class AnchorDrift:
    """The attacker's side of the loss: the squared L2 distance to features [n, d] that are known already.

    The same number as `Drift("l2", anchor=original)`, which runs the original once for every prompt of each bind.
    """

    name = "drift(l2, anchor=features)"

    def __init__(self, features: Float[Tensor, "n d"], feature: Feature = "projected") -> None:
        self.features, self.feature = features, feature

    def goals(self, encoder: TextEncoder, prompts: Sequence[str]) -> list[Goal]:
        if len(prompts) != len(self.features):
            raise ValueError(f"{len(prompts)} prompts for the features of {len(self.features)}")
        return [Goal.against(squared_distance, row) for row in self.features.to(encoder.device)]


def bucketed(
    features: Callable[[list[list[int]]], Float[Tensor, "n d"]], rows: Sequence[list[int]], at_once: int = 256
) -> Float[Tensor, "n d"]:
    """Features of token rows [n, d], computed among rows of like length, so that little of it is padding.

    Four buckets of equally many rows; fewer where these would have less than 24 each, more where over `at_once`.
    """
    if not rows:
        return features([])
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    size = min(max(-(-len(rows) // 4), 24), at_once)
    parts = [features([rows[i] for i in order[j : j + size]]) for j in range(0, len(rows), size)]
    places = torch.empty(len(rows), dtype=torch.long, device=parts[0].device)
    places[torch.tensor(order, device=places.device)] = torch.arange(len(rows), device=places.device)
    return torch.cat(parts)[places]


@torch.no_grad()
def embed(encoder: TextEncoder, texts: Sequence[str], feature: Feature | None = None) -> Float[Tensor, "n d"]:
    """What is learnt of the texts (default: `learnt`), without gradients."""
    what = feature or learnt(encoder)
    return bucketed(lambda rows: encoder.features(rows, what), encoder.tokenize(texts))


MOST_NUMBERS = 1 << 26
"""Of the original's features, held at once."""


class Anchors:
    """The original's features of the batches of a training, computed for many batches to come at once.

    `batches(i)` are the captions of batch `i` of `n`, all batches equally large. What comes of a batch follows from its number
    alone, wherever a training is taken up again.
    """

    def __init__(
        self,
        original: TextEncoder,
        batches: Callable[[int], list[str]],
        n: int,
        feature: Feature | None = None,
        at_once: int = 1024,
    ) -> None:
        self._original, self._batches, self._n, self._at_once = original, batches, n, at_once
        self._feature = feature or learnt(original)
        if isinstance(self._feature, SequenceFeature):  # of large towers, a megabyte each
            width = embed(original, batches(0)[:1], self._feature).shape[1]
            self._at_once = max(1, min(at_once, MOST_NUMBERS // width))
        self._first, self._held = 0, list[Tensor]()

    def __getitem__(self, i: int) -> Float[Tensor, "batch d"]:
        if not self._first <= i < self._first + len(self._held):
            size = len(self._batches(i))
            many = max(1, self._at_once // size)
            self._first = i // many * many
            coming = [self._batches(j) for j in range(self._first, min(self._first + many, self._n))]
            texts = [text for batch in coming for text in batch]
            self._held = list(embed(self._original, texts, self._feature).split(size))
        return self._held[i - self._first]


def attack_captions(
    attack: Attack,
    encoder: TextEncoder,
    captions: Sequence[str],
    targets: Float[Tensor, "n d"],
    *,
    k: int,
    constraint: Constraint | None,
    seed: int,
    feature: Feature | None = None,
    precision: Precision = "fp32",
    search: Callable[[PlainScore], list[str]] | None = None,
) -> list[str]:
    """Each caption as `attack` (or `search`, which runs it elsewhere: `AttackWorkers`) perturbs it on `encoder` as it is now,
    away from its target.

    Runs the attack without the verification of its call, which would cost a training step another pass.
    """
    score = Scorer(encoder, AnchorDrift(targets, feature or learnt(encoder)), precision=precision).bind(captions)
    if search is not None:
        return search(score)
    found = attack.run(Problem.of(list(captions), score, k, constraint=constraint, seed=seed))
    return [str(text) for text in found]
