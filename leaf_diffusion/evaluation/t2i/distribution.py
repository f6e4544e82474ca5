"""Rows about whole sets: distances to real images, the minimal pairs told apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from leaf_diffusion.evaluation.t2i.judges import ImageModel, Judges
from leaf_diffusion.evaluation.t2i.plan import Cell, Plan
from leaf_diffusion.evaluation.t2i.rows import bare_row, cell_of, pairs_of
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.evaluation.tasks.text import sensitivity
from leaf_diffusion.metrics import Distance, cmmd, frechet_distance, kid, paired_bootstrap
from leaf_diffusion.runs import RunStore
from leaf_diffusion.world.figures import zero_shot_anchors

DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], Distance]] = {
    "kid": kid,
    "cmmd": cmmd,
    "frechet": frechet_distance,
}
AT_ONCE = 256


def distribution_rows(
    plan: Plan, store: RunStore, drawn: Sequence[dict[str, Any]], judges: Judges, attack: str, constraint: str
) -> list[dict[str, Any]]:
    """KID, CMMD and Frechet distance of each cell's images to real ones; n counts the generated images.

    None of them has an interval: they compare sets, not prompts. Their feature spaces are `judges.spaces()`.
    """
    shown: dict[Cell, list[str]] = defaultdict(list)
    for row in drawn:
        if row["protocol"] != "floor":
            shown[cell_of(row)].append(row["image"])
    paths = list(dict.fromkeys(path for each in shown.values() for path in each))
    spaces = judges.spaces()
    rows: dict[tuple[Cell, str], dict[str, Any]] = {}
    for space, model in dict(spaces.values()).items():  # one space at a time is in memory
        features: dict[str, np.ndarray] = {}
        for i in range(0, len(paths), AT_ONCE):
            part = paths[i : i + AT_ONCE]
            features.update(zip(part, _features(model, [store.load_image(path) for path in part]), strict=True))
        real = _features(model, judges.real)
        for metric in (metric for metric, (name, _) in spaces.items() if name == space):
            for cell in (cell for cell in plan.cells if len(shown[cell]) >= 2):
                generated = np.stack([features[path] for path in shown[cell]])
                found = {"mean": float(DISTANCES[metric](generated, real)), "n": len(generated)}
                rows[cell, metric] = bare_row(cell, metric, plan, attack, constraint) | found
    return [rows[cell, metric] for cell in plan.cells for metric in DISTANCES if (cell, metric) in rows]


def _features(model: ImageModel, images: Sequence[Image.Image]) -> np.ndarray:
    return model.encode_image(images).float().cpu().numpy()


def sensitivity_rows(setup: Setup) -> list[dict[str, Any]]:
    """The world's minimal pairs (cat/hat): the share told apart, n counts pairs, colours and directions.

    An encoder that hears no difference between two words would be robust for the wrong reason.
    """
    anchors = zero_shot_anchors()
    told = {label: sensitivity(one.encoder, anchors) for label, one in setup.encoders.items()}
    rows = []
    for encoder, baseline in [*((label, None) for label in told), *pairs_of(list(told))]:
        interval = paired_bootstrap(told[encoder], told[baseline] if baseline else None)
        found = {"mean": interval.mean, "ci_low": interval.ci_low, "ci_high": interval.ci_high}
        row = bare_row(Cell(encoder, "clean"), "sensitivity", setup.plan, "", "")
        rows.append(row | {"baseline": baseline, "n": len(told[encoder]), "seeds": 1} | found)
    return rows
