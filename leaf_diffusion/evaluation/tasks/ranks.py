"""Where the right image and the targets stand for each text, and the figures that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.evaluation.experiment import Setting
from leaf_diffusion.metrics.retrieval import ranks
from leaf_diffusion.reports.metrics import CUTS, TARGET_ABOVE, recall, target_recall

Goal = Literal["drift", "margin", "toward"]
TOP = 5
"""Images kept of each ranking, for the page."""


@torch.inference_mode()
def similarities(encoder: TextEncoder, images: Float[Tensor, "n d"], texts: Sequence[str]) -> Float[Tensor, "q n"]:
    """Cosines of texts and images, whose features have length 1, on the CPU."""
    features = encoder.features(encoder.tokenize(encoder.preprocess(texts)))
    return normalize(features, dim=-1).cpu() @ images.T


def ranked(
    encoder: TextEncoder, images: Float[Tensor, "n d"], query: int, targets: Sequence[int], texts: Sequence[str]
) -> list[dict[str, Any]]:
    """Of each text: the rank of image `query` (from 1) and of the targets, whether each target is more similar, and
    the first images found. `images` as in `similarities`."""
    distinct = list(dict.fromkeys(texts))
    similar = similarities(encoder, images, distinct)
    own = ranks(similar, [query] * len(distinct)).tolist()
    others = [ranks(similar, [target] * len(distinct)).tolist() for target in targets]
    order = similar.sort(dim=1, descending=True, stable=True).indices[:, :TOP].tolist()
    found = {
        text: {
            "rank": own[i],
            "target_ranks": [each[i] for each in others],
            "target_above": [bool(similar[i, target] > similar[i, query]) for target in targets],
            "top": order[i],
        }
        for i, text in enumerate(distinct)
    }
    return [found[text] for text in texts]


def clean_values(records: Sequence[Mapping[str, Any]]) -> dict[Setting, dict[str, float]]:
    """Recall of every caption of the gallery, also of those that are not attacked."""
    found: dict[Setting, dict[str, float]] = {}
    for record in records:
        for cut in CUTS:
            setting = Setting(record["encoder"], recall(cut).key, more=(("captions", "all"),))
            found.setdefault(setting, {})[f"{record['number']:06d}"] = float(record["rank"] <= cut)
    return found


def values(records: Sequence[Mapping[str, Any]], targets: Sequence[int]) -> dict[Setting, dict[str, float]]:
    """Each metric of each caption; of a targeted attack the mean over its targets, so that captions are the sample.

    What becomes of the targets is measured for clean captions, too: it is what chance gives.
    """
    gathered: dict[Setting, dict[str, list[float]]] = {}
    attacked_ones = (("captions", "attacked"),)
    for record in records:
        for row in record["searches"]:
            attacked = row["protocol"] != "clean"
            label = f"charmer, {row['goal']}" if attacked else None
            place = (row["protocol"], row.get("source"), label, row.get("constraint"), row.get("k", 0))
            found = {recall(cut).key: [float(row["rank"] <= cut)] for cut in CUTS}
            aimed = [i for i, target in enumerate(targets) if not attacked or target == row["target"]]
            if aimed:
                found[TARGET_ABOVE.key] = [float(row["target_above"][i]) for i in aimed]
                for cut in CUTS:
                    found[target_recall(cut).key] = [float(row["target_ranks"][i] <= cut) for i in aimed]
            for metric, each in found.items():
                units = gathered.setdefault(Setting(record["encoder"], metric, *place, more=attacked_ones), {})
                units.setdefault(f"{record['number']:06d}", []).extend(each)
    return {setting: {unit: sum(v) / len(v) for unit, v in units.items()} for setting, units in gathered.items()}
