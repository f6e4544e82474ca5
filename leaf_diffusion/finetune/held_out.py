"""What is measured on held-out captions, before and after a training."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from leaf_diffusion.attacks import Attack, LeafAttack, RandomTypos
from leaf_diffusion.encoders.base import Feature, TextEncoder
from leaf_diffusion.finetune.anchors import AnchorDrift, distances, embed, learnt
from leaf_diffusion.finetune.card import Figures
from leaf_diffusion.scoring import Scorer
from leaf_diffusion.text import Constraint


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
    feature: Feature | None = None,
) -> Figures:
    """Means over captions, against `targets` [n, d], the original's embeddings of the clean captions (`feature`; default:
    `learnt`).

    `drift_*` is the squared L2 distance over the targets' mean squared norm, `cosine_*` the cosine; `*_clean` of the
    captions as they are, `*_typos` with `k` random edits, `*_leaf` under the LEAF attack on `encoder`. `accuracy_clean`
    is top-1 retrieval against the original: the share of captions whose embedding is nearest (cosine) to the original's
    of the same caption among those of all distinct ones; 1.0 before training, and no images are needed.
    """
    attacks: dict[str, Attack] = {"typos": RandomTypos(), "leaf": LeafAttack(rho=rho)}
    given = {"clean": list(captions)}
    for name, attack in attacks.items():
        scorer = Scorer(encoder, AnchorDrift(targets, feature or learnt(encoder)))
        results = attack(captions, scorer, k=k, constraint=constraint, seed=seed)
        given[name] = [result.perturbed for result in results]
    features = {name: embed(encoder, texts, feature) for name, texts in given.items()}
    accuracy = accuracy_clean(encoder, captions, features["clean"], targets)
    return distances(features, targets) | {"accuracy_clean": accuracy}
