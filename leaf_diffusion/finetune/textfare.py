"""TextFARE (paper, section 3): the loss, the captions it is taken on, and the figures that tell whether it helped."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from leaf_diffusion.attacks import Attack, LeafAttack, RandomTypos
from leaf_diffusion.attacks.base import bind_constraint, generators
from leaf_diffusion.encoders.base import Feature, TextEncoder
from leaf_diffusion.scoring import Goal, Precision, Scorer
from leaf_diffusion.scoring.objectives import squared_distance
from leaf_diffusion.text import Constraint

Figures = dict[str, float]


def textfare_loss(encoder_features: Float[Tensor, "n d"], anchor_features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean over captions of the squared L2 distance (sum over features) between projected, unnormalised embeddings:
    the trained tower's of the perturbed caption and the frozen original's of the clean one."""
    if encoder_features.shape != anchor_features.shape:
        shapes = f"{tuple(encoder_features.shape)} do not fit the anchor's {tuple(anchor_features.shape)}"
        raise ValueError(f"features {shapes}")
    return (encoder_features.float() - anchor_features.float()).square().sum(-1).mean()


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


class AnchorDrift:
    """The attacker's side of the loss: the squared L2 distance to features [n, d] that are known already.

    The same number as `Drift("l2", anchor=original)`, which runs the original once for every prompt of each bind.
    """

    feature: Feature = "projected"
    name = "drift(l2, anchor=features)"

    def __init__(self, features: Float[Tensor, "n d"]) -> None:
        self.features = features

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
def embed(encoder: TextEncoder, texts: Sequence[str]) -> Float[Tensor, "n d"]:
    """Projected features of the texts, without gradients."""
    return bucketed(encoder.features, encoder.tokenize(texts))


class Anchors:
    """The original's features of the batches of a training, computed for many batches to come at once.

    `batches(i)` are the captions of batch `i` of `n`, all batches equally large. What comes of a batch follows from its number
    alone, wherever a training is taken up again.
    """

    def __init__(self, original: TextEncoder, batches: Callable[[int], list[str]], n: int, at_once: int = 1024) -> None:
        self._original, self._batches, self._n, self._at_once = original, batches, n, at_once
        self._first, self._held = 0, list[Tensor]()

    def __getitem__(self, i: int) -> Float[Tensor, "batch d"]:
        if not self._first <= i < self._first + len(self._held):
            size = len(self._batches(i))
            many = max(1, self._at_once // size)
            self._first = i // many * many
            coming = [self._batches(j) for j in range(self._first, min(self._first + many, self._n))]
            self._held = list(embed(self._original, [text for batch in coming for text in batch]).split(size))
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
    precision: Precision = "fp32",
) -> list[str]:
    """Each caption as `attack` perturbs it on `encoder` as it is now, away from its target.

    Runs the attack without the verification of its call, which would cost a training step another pass.
    """
    score = Scorer(encoder, AnchorDrift(targets), precision=precision).bind(captions)
    allowed, rngs = bind_constraint(constraint, captions), generators(captions, seed)
    found = attack.run(captions, score, k=k, allowed=allowed, rngs=rngs, on_step=None)
    return [str(text) for text in found]


def accuracy_clean(
    encoder: TextEncoder,
    captions: Sequence[str],
    features: Float[Tensor, "n d"],
    targets: Float[Tensor, "n d"],
    at_once: int = 1024,
) -> float:
    """The figure of `held_out_figures`; `features` are the embeddings by `encoder`, which also tokenizes.

    Captions that tokenize alike (duplicates, other capitals, equal up to the context's end) are one and the same.
    """
    rows = [tuple(row) for row in encoder.tokenize(captions)]
    last = {row: i for i, row in enumerate(rows)}
    place = {row: i for i, row in enumerate(last)}
    own = torch.tensor([place[row] for row in rows], device=features.device)
    among = normalize(targets[list(last.values())].float(), dim=-1)
    # the length of a caption's own embedding does not change which target is nearest
    nearest = torch.cat([(part.float() @ among.T).argmax(-1) for part in features.split(at_once)])
    return int((nearest == own).sum()) / len(rows)


def held_out_figures(
    encoder: TextEncoder,
    captions: Sequence[str],
    targets: Float[Tensor, "n d"],
    *,
    k: int,
    constraint: Constraint | None,
    rho: int = 50,
    seed: int = 0,
) -> Figures:
    """Means over captions, against `targets` [n, d], the original's embeddings of the clean captions.

    `drift_*` is the squared L2 distance over the targets' mean squared norm, `cosine_*` the cosine; `*_clean` of the
    captions as they are, `*_typos` with `k` random edits, `*_leaf` under the LEAF attack on `encoder`. `accuracy_clean`
    is top-1 retrieval against the original: the share of captions whose embedding is nearest (cosine) to the original's
    of the same caption among those of all distinct ones; 1.0 before training, and no images are needed.
    """
    attacks: dict[str, Attack] = {"typos": RandomTypos(), "leaf": LeafAttack(rho=rho)}
    given = {"clean": list(captions)}
    for name, attack in attacks.items():
        results = attack(captions, Scorer(encoder, AnchorDrift(targets)), k=k, constraint=constraint, seed=seed)
        given[name] = [result.perturbed for result in results]
    unit = float(targets.square().sum(-1).mean())
    figures: Figures = {}
    for name, texts in given.items():
        features = embed(encoder, texts)
        figures[f"drift_{name}"] = float(textfare_loss(features, targets)) / unit
        figures[f"cosine_{name}"] = float(cosine_similarity(features, targets).mean())
        if name == "clean":
            figures["accuracy_clean"] = accuracy_clean(encoder, texts, features, targets)
    return figures
