"""From records to result rows. A row is one metric of one encoder under one protocol, or a paired difference of two."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from leaf_diffusion.eval.judges import Judges
from leaf_diffusion.eval.plan import Cell, Plan
from leaf_diffusion.eval.setup import Setup
from leaf_diffusion.metrics import cmmd, frechet_distance, kid, paired_bootstrap
from leaf_diffusion.runs import RunStore

METRICS = {
    "clip_score": "clip_score",
    "clip_score_attacked_caption": "clip_score_attacked_caption",
    "scene_accuracy": "scene_correct",
    "drift": "drift",
    "drift_features": "drift_features",
}
"""Metric -> field of a score record. Drift (pixel RMSE, 0 to 1) has the protocol "floor" beside it."""

Values = dict[str, float]
"""Prompt id -> value, the mean over seeds."""


def result_rows(
    plan: Plan, pictures: Sequence[dict[str, Any]], scores: Sequence[dict[str, Any]], attack: str, constraint: str
) -> list[dict[str, Any]]:
    """Means with bootstrap intervals over prompts, and paired differences between encoders.

    Every encoder is compared with the first one; among the others the earlier is compared with the later.
    """
    values = _values(pictures, scores)
    labels = list(dict.fromkeys(cell.encoder for cell in plan.cells))
    pairs = [(b, a) if a == labels[0] else (a, b) for a, b in combinations(labels, 2)]
    rows = []
    for cell in plan.cells:
        for metric in METRICS:
            if mine := values.get((cell, metric)):
                rows.append(_row(cell, metric, mine, None, None, plan, attack, constraint))
    for encoder, baseline in pairs:
        for cell in (cell for cell in plan.cells if cell.encoder == encoder and cell.protocol != "floor"):
            other = Cell(baseline, cell.protocol, baseline if cell.protocol == "adaptive" else cell.source, cell.k)
            for metric in METRICS:
                mine, theirs = values.get((cell, metric)), values.get((other, metric))
                if mine and theirs:
                    rows.append(_row(cell, metric, mine, theirs, baseline, plan, attack, constraint))
    return rows


def _values(pictures: Sequence[dict[str, Any]], scores: Sequence[dict[str, Any]]) -> dict[tuple[Cell, str], Values]:
    by_id = {row["id"]: row for row in scores}
    seeds: dict[tuple[Cell, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for picture in pictures:
        cell = cell_of(picture)
        for metric, name in METRICS.items():
            if cell.protocol == "floor" and not metric.startswith("drift"):
                continue
            value = by_id.get(picture["id"], {}).get(name)
            if value is not None:
                seeds[cell, metric][picture["prompt_id"]].append(float(value))
    return {key: {prompt: float(np.mean(each)) for prompt, each in found.items()} for key, found in seeds.items()}


def cell_of(row: dict[str, Any]) -> Cell:
    return Cell(row["encoder"], row["protocol"], row["source"], row["k"])


def _row(
    cell: Cell,
    metric: str,
    mine: Values,
    theirs: Values | None,
    baseline: str | None,
    plan: Plan,
    attack: str,
    constraint: str,
) -> dict[str, Any]:
    order = sorted(mine if theirs is None else mine.keys() & theirs.keys())
    interval = paired_bootstrap([mine[p] for p in order], None if theirs is None else [theirs[p] for p in order])
    row = _bare(cell, metric, plan, attack, constraint) | {"baseline": baseline, "n": len(order)}
    return row | {"mean": interval.mean, "ci_low": interval.ci_low, "ci_high": interval.ci_high}


def _bare(cell: Cell, metric: str, plan: Plan, attack: str, constraint: str) -> dict[str, Any]:
    """A row in the order of its columns, nothing measured yet. An adaptive attack's source is the encoder itself."""
    attacked = cell.source is not None
    return {
        "encoder": cell.encoder,
        "baseline": None,
        "protocol": cell.protocol,
        "source": cell.source,
        "attack": attack if attacked else None,
        "constraint": constraint if attacked else None,
        "k": cell.k,
        "metric": metric,
        "mean": None,
        "ci_low": None,
        "ci_high": None,
        "n": 0,
        "seeds": 1 if cell.protocol == "floor" else plan.seeds,
    }


def distribution_rows(
    plan: Plan, store: RunStore, judges: Judges, attack: str, constraint: str
) -> list[dict[str, Any]]:
    """KID, CMMD and Frechet distance of each cell's pictures to real ones; n counts the generated pictures.

    None of them has an interval: they compare sets, not prompts. The feature space is the CLIP judge's.
    """
    if judges.clip is None or not judges.real:
        return []
    pictures = [row for row in store.records("pictures") if row["protocol"] != "floor"]
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
            rows.append(_bare(cell, metric, plan, attack, constraint) | found)
    return rows


def attack_counts(attacks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each attack set: how many prompts, how far, unchanged, truncated, tokens never seen, queries."""
    sets: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in attacks:
        sets[row["source"], row["k"]].append(row)

    def mean(rows: list[dict[str, Any]], name: str) -> float | None:
        values = [float(row[name]) for row in rows if row.get(name) is not None]
        return float(np.mean(values)) if values else None

    return [
        {
            "source": source,
            "k": k,
            "n": len(rows),
            "unchanged": sum(row["prompt"] == row["perturbed"] for row in rows),
            "truncated": sum(bool(row["truncated"]) for row in rows),
            **{name: mean(rows, name) for name in ("distance", "score", "queries", "unseen_tokens")},
        }
        for (source, k), rows in sets.items()
    ]


def picture_counts(pictures: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many pictures were judged, drawn (equal ones are drawn once), and made from a truncated prompt."""
    return {
        "pictures": len(pictures),
        "drawn": len({row["image"] for row in pictures}),
        "truncated": sum(bool(row["truncated"]) for row in pictures),
        "given_unchanged": sum(row["source"] is not None and row["given"] == row["original"] for row in pictures),
    }


def summarise(setup: Setup, judges: Judges, store: RunStore) -> dict[str, Any]:
    """Results of a finished run, written to results.json: rows, and what was truncated, unchanged or never seen."""
    options = setup.options
    pictures, attacks = store.records("pictures"), store.records("attacks")
    attack: str = options.attack
    constraint: str = options.constraint
    if setup.given_attacks:
        attack = "+".join(sorted({str(row["attack"] or "given") for row in attacks}))
        constraint = "+".join(sorted({str(row["constraint"] or "unknown") for row in attacks}))
    results = {
        "rows": result_rows(setup.plan, pictures, store.records("scores"), attack, constraint)
        + distribution_rows(setup.plan, store, judges, attack, constraint),
        "attacks": attack_counts(attacks),
        "counts": picture_counts(pictures),
        "feature_space": judges.space,
        "real_pictures": len(judges.real),
    }
    store.write_results(results)
    return results
