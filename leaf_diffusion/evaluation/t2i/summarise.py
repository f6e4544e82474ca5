"""The results of a run: rows, and counts of what was truncated, unchanged or never seen in training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from leaf_diffusion.evaluation.t2i.distribution import distribution_rows, sensitivity_rows
from leaf_diffusion.evaluation.t2i.judges import Judges
from leaf_diffusion.evaluation.t2i.rows import result_rows
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.runs import RunStore


def summarise(setup: Setup, judges: Judges, store: RunStore, swap_cost: dict[str, Any] | None = None) -> dict[str, Any]:
    """Results of a finished run, written to results.json: rows, and what was truncated, unchanged or never seen.

    `swap_cost`: what another run found about the same encoders on clean prompts, kept beside the rows.
    """
    options = setup.options
    plan = setup.plan
    images = in_order(store.records("images"), [unit.id for unit in plan.images()])
    scores = in_order(store.records("scores"), [image["id"] for image in images])
    attacks = in_order(
        store.records("attacks"), [plan.attack_id(s, k, p) for s, k in plan.sets() for p in plan.prompts]
    )
    attack: str = options.attack.label
    constraint: str = options.constraint
    if setup.given_attacks:
        attack = "+".join(sorted({str(row["attack"] or "given") for row in attacks}))
        constraint = "+".join(sorted({str(row["constraint"] or "unknown") for row in attacks}))
    results = {
        "rows": result_rows(plan, images, scores, attack, constraint)
        + distribution_rows(plan, store, images, judges, attack, constraint)
        + (sensitivity_rows(setup) if options.world else []),
        "attacks": attack_counts(attacks),
        "counts": image_counts(images),
        "feature_space": judges.space,
        "feature_spaces": {metric: name for metric, (name, _) in judges.spaces().items()},
        "real_images": len(judges.real),
    }
    if swap_cost is not None:
        results["swap_cost"] = swap_cost
    store.write_results(results)
    return results


def in_order(records: Sequence[dict[str, Any]], ids: Sequence[str]) -> list[dict[str, Any]]:
    """The planned records in the plan's order, whoever wrote them when. ValueError where one is missing."""
    found = {record["id"]: record for record in records}
    if missing := [unit for unit in ids if unit not in found]:
        raise ValueError(f"{len(missing)} of {len(ids)} planned units are not recorded, the first is {missing[0]}")
    return [found[unit] for unit in ids]


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


def image_counts(images: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many images were judged, drawn (equal ones are drawn once), and made from a truncated prompt."""
    return {
        "images": len(images),
        "drawn": len({row["image"] for row in images}),
        "truncated": sum(bool(row["truncated"]) for row in images),
        "given_unchanged": sum(row["source"] is not None and row["given"] == row["original"] for row in images),
    }
