"""Where the right image and the targets stand for each text, and the figures that follow."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.evaluation.experiment import Setting
from leaf_diffusion.evaluation.tasks.units import Noted
from leaf_diffusion.metrics.retrieval import ranks
from leaf_diffusion.reports.metrics import CUTS, TARGET_ABOVE, recall, target_recall
from leaf_diffusion.runs import RunStore
from leaf_diffusion.runs.experiment_records import (
    AttackedCaption,
    AttackedCaptions,
    CleanRank,
    Embedded,
    Ranked,
    Ranking,
    Searched,
)

TOP = 5
"""Images kept of each ranking, for the page."""


def packed(numbers: Sequence[int], features: Tensor) -> list[Embedded]:
    """Features [n, d] of images as they are recorded."""
    rows = features.cpu().numpy().astype("<f4")
    texts = [base64.b64encode(row.tobytes()).decode() for row in rows]
    return [Embedded(number=i, features=each) for i, each in zip(numbers, texts, strict=True)]


def unpacked(records: Iterable[Embedded]) -> Float[Tensor, "n d"]:
    """Features of length 1, in the order of the images' numbers."""
    texts = {record.number: record.features for record in records}
    rows = [np.frombuffer(base64.b64decode(texts[i]), "<f4") for i in range(len(texts))]
    return normalize(torch.from_numpy(np.stack(rows)), dim=-1)


@torch.inference_mode()
def similarities(encoder: TextEncoder, images: Float[Tensor, "n d"], texts: Sequence[str]) -> Float[Tensor, "q n"]:
    """Cosines of texts and images, whose features have length 1, on the CPU."""
    features = encoder.features(encoder.tokenize(encoder.preprocess(texts)))
    return normalize(features, dim=-1).cpu() @ images.T


def clean_ranks(
    encoder: TextEncoder, label: str, images: Float[Tensor, "n d"], captions: Sequence[str], numbers: Sequence[int]
) -> list[CleanRank]:
    """Where the right image stands for some captions: costs little, and its intervals are narrow."""
    similar = similarities(encoder, images, [captions[number] for number in numbers])
    found = ranks(similar, numbers).tolist()
    return [CleanRank(encoder=label, number=i, rank=rank) for i, rank in zip(numbers, found, strict=True)]


def ranked(
    encoder: TextEncoder, images: Float[Tensor, "n d"], query: int, targets: Sequence[int], texts: Sequence[str]
) -> list[Ranking]:
    """Of each text: the rank of image `query` (from 1) and of the targets, whether each target is more similar, and
    the first images found. `images` as in `similarities`."""
    distinct = list(dict.fromkeys(texts))
    similar = similarities(encoder, images, distinct)
    own = ranks(similar, [query] * len(distinct)).tolist()
    others = [ranks(similar, [target] * len(distinct)).tolist() for target in targets]
    order = similar.sort(dim=1, descending=True, stable=True).indices[:, :TOP].tolist()
    found = {
        text: Ranking(
            rank=own[i],
            target_ranks=[each[i] for each in others],
            target_above=[bool(similar[i, target] > similar[i, query]) for target in targets],
            top=order[i],
        )
        for i, text in enumerate(distinct)
    }
    return [found[text] for text in texts]


def rank_searches(
    encoder: TextEncoder,
    label: str,
    images: Float[Tensor, "n d"],
    caption: str,
    query: int,
    targets: Sequence[int],
    own: Sequence[AttackedCaption],
    transferred: Sequence[AttackedCaption],
) -> Ranked:
    """The rankings of a caption: clean, under each attack on the encoder itself, under those found on the first one."""
    asked = [("clean", caption, dict[str, object]())]
    for protocol, rows in (("adaptive", own), ("transfer", transferred)):
        place = {"source", "attack", "constraint", "k", "goal", "target"}
        asked += [(protocol, row.perturbed, row.model_dump(include=place)) for row in rows]
    places = ranked(encoder, images, query, targets, [text for _, text, _ in asked])
    found = [
        Searched.model_validate({"protocol": protocol, "perturbed": text, **where, **dict(ranking)})
        for (protocol, text, where), ranking in zip(asked, places, strict=True)
    ]
    return Ranked(encoder=label, number=query, caption=caption, searches=found)


def rank_attacked(
    store: RunStore,
    encoder: TextEncoder,
    label: str,
    images: Float[Tensor, "n d"],
    captions: Sequence[str],
    queries: Sequence[int],
    targets: Sequence[int],
    first: str,
) -> list[Ranked]:
    """Captions clean, under the attacks on the encoder itself, and under those found on the encoder `first`."""
    found = {(each.encoder, each.number): each.attacked for each in store.records("attacks", AttackedCaptions)}
    return [
        rank_searches(encoder, label, images, captions[query], query, targets, found[label, query], found[first, query])
        for query in queries
    ]


def retrieval_values(clean: Iterable[CleanRank], records: Iterable[Ranked], targets: Sequence[int]) -> Noted:
    """Recall of every caption of the gallery, and each metric of those that are attacked; of a targeted attack the mean over
    its targets, so that captions are the sample.

    What becomes of the targets is measured for clean captions, too: it is what chance gives.
    """
    noted = Noted()
    for one in clean:
        for cut in CUTS:
            noted.note(Setting(one.encoder, recall(cut).key, more=(("captions", "all"),)), one.number, one.rank <= cut)
    gathered: dict[tuple[Setting, int], list[bool]] = {}
    for record in records:
        for row in record.searches:
            found = {recall(cut).key: [row.rank <= cut] for cut in CUTS}
            aimed = [i for i, target in enumerate(targets) if row.goal is None or target == row.target]
            if aimed:
                found[TARGET_ABOVE.key] = [row.target_above[i] for i in aimed]
                for cut in CUTS:
                    found[target_recall(cut).key] = [row.target_ranks[i] <= cut for i in aimed]
            label = None if row.goal is None else f"{row.attack}, {row.goal}"
            place = (row.protocol, row.source, label, row.constraint, row.k)
            for metric, each in found.items():
                setting = Setting(record.encoder, metric, *place, more=(("captions", "attacked"),))
                gathered.setdefault((setting, record.number), []).extend(each)
    for (setting, number), each in gathered.items():
        noted.note(setting, number, sum(each) / len(each))
    return noted
