"""Rows about whole sets: distances to real images, the minimal pairs told apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

from leaf_diffusion.evaluation.results import Setting, result_rows
from leaf_diffusion.evaluation.t2i.judges import ImageModel, Judges
from leaf_diffusion.evaluation.t2i.plan import Cell, Plan
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.evaluation.t2i.summarise import pairs_of, setting
from leaf_diffusion.evaluation.tasks.text import pair_clusters, sensitivity
from leaf_diffusion.metrics.distribution import least_images
from leaf_diffusion.reports.results import OF_SETS
from leaf_diffusion.runs import ResultRow, RunStore
from leaf_diffusion.runs.records import ImageRecord
from leaf_diffusion.runs.scheduler import chunks
from leaf_diffusion.world.figures import zero_shot_anchors

AT_ONCE = 256


def distribution_rows(
    plan: Plan, store: RunStore, drawn: Sequence[ImageRecord], judges: Judges, attack: str, constraint: str
) -> list[ResultRow]:
    """KID, CMMD and Frechet distance of each cell's images to real ones; n counts the generated images.

    None of them has an interval: they compare sets, not prompts. Their feature spaces are `judges.spaces()`. Smaller sets
    than `least_images` have none.
    """
    shown: dict[Cell, list[str]] = defaultdict(list)
    for each in drawn:
        if each.protocol != "floor":
            shown[Cell(each.encoder, each.protocol, each.source, each.k)].append(each.image)
    paths = list(dict.fromkeys(path for each in shown.values() for path in each))
    spaces = judges.spaces()
    rows: dict[tuple[Cell, str], ResultRow] = {}
    for space, model in dict(spaces.values()).items():  # one space at a time is in memory
        features: dict[str, np.ndarray] = {}
        for part in chunks(paths, AT_ONCE):
            features.update(zip(part, _features(model, [store.load_image(path) for path in part]), strict=True))
        real = _features(model, judges.real)
        for metric in (metric for metric, (name, _) in spaces.items() if name == space):
            least = least_images(metric, real.shape[1])
            for cell in (cell for cell in plan.cells if len(shown[cell]) >= least <= len(real)):
                generated = np.stack([features[path] for path in shown[cell]])
                distance = float(OF_SETS[metric](generated, real))
                rows[cell, metric] = setting(plan, cell, metric, attack, constraint).row(len(generated), distance)
    return [rows[cell, metric] for cell in plan.cells for metric in OF_SETS if (cell, metric) in rows]


def _features(model: ImageModel, images: Sequence[Image.Image]) -> np.ndarray:
    return model.encode_image(images).float().cpu().numpy()


def sensitivity_rows(setup: Setup) -> list[ResultRow]:
    """The world's minimal pairs (cat/hat): the share told apart, n counts pairs, colours and directions.

    An encoder that hears no difference between two words would be robust for the wrong reason.
    """
    anchors = zero_shot_anchors()
    values = {}
    for label, one in setup.encoders.items():
        told = sensitivity(one.encoder, anchors)
        values[Setting(label, "sensitivity")] = {f"{i:06d}": each for i, each in enumerate(told)}
    of_pair = {f"{i:06d}": pair for i, pair in enumerate(pair_clusters())}
    return result_rows(values, pairs_of(list(setup.encoders)), of_pair)
