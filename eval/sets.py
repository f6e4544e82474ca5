"""Rows about whole sets: distances to real pictures, the minimal pairs told apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from leaf_diffusion.eval.judges import Judges
from leaf_diffusion.eval.plan import Cell, Plan
from leaf_diffusion.eval.rows import bare_row, cell_of, pairs_of
from leaf_diffusion.eval.setup import Setup
from leaf_diffusion.eval.zero_shot_task import sensitivity
from leaf_diffusion.metrics import cmmd, frechet_distance, kid, paired_bootstrap
from leaf_diffusion.runs import RunStore
from leaf_diffusion.world.figures import zero_shot_anchors


def distribution_rows(
    plan: Plan, store: RunStore, drawn: Sequence[dict[str, Any]], judges: Judges, attack: str, constraint: str
) -> list[dict[str, Any]]:
    """KID, CMMD and Frechet distance of each cell's pictures to real ones; n counts the generated pictures.

    None of them has an interval: they compare sets, not prompts. The feature space is the CLIP judge's.
    """
    if judges.clip is None or not judges.real:
        return []
    pictures = [row for row in drawn if row["protocol"] != "floor"]
    paths = list(dict.fromkeys(row["image"] for row in pictures))
    features: dict[str, np.ndarray] = {}
    for i in range(0, len(paths), 256):
        part = paths[i : i + 256]
        features.update(
            zip(part, judges.clip.encode_image([store.load_image(p) for p in part]).float().cpu().numpy(), strict=True)
        )
    real = judges.clip.encode_image(judges.real).float().cpu().numpy()
    shown: dict[Cell, list[np.ndarray]] = defaultdict(list)
    for row in pictures:
        shown[cell_of(row)].append(features[row["image"]])
    rows = []
    for cell in plan.cells:
        if len(shown[cell]) < 2:
            continue
        generated = np.stack(shown[cell])
        for metric, measure in (("kid", kid), ("cmmd", cmmd), ("frechet", frechet_distance)):
            found = {"mean": float(measure(generated, real)), "n": len(generated)}
            rows.append(bare_row(cell, metric, plan, attack, constraint) | found)
    return rows


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
