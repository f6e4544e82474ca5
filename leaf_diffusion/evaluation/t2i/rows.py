"""Result rows: one metric of one encoder under one protocol, or a paired difference of two encoders."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from leaf_diffusion.evaluation.t2i.plan import Cell, Plan
from leaf_diffusion.metrics import paired_bootstrap
from leaf_diffusion.runs import FIELDS, SWAP_FIELDS, Values, prompt_values


def result_rows(
    plan: Plan, images: Sequence[dict[str, Any]], scores: Sequence[dict[str, Any]], attack: str, constraint: str
) -> list[dict[str, Any]]:
    """Means with bootstrap intervals over prompts, and paired differences between encoders.

    Every encoder is compared with the first one; among the others the earlier is compared with the later. The drift of
    clean prompts is that of a swap: how far an encoder's images are from the first one's, which has none itself.
    """
    clean = [row for row in images if row["protocol"] == "clean"]
    found = {**prompt_values(images, scores), **prompt_values(clean, scores, SWAP_FIELDS)}
    values = {(Cell(*key), metric): each for (key, metric), each in found.items()}
    labels = list(dict.fromkeys(cell.encoder for cell in plan.cells))
    rows = []
    for cell in plan.cells:
        for metric in FIELDS:
            if mine := values.get((cell, metric)):
                rows.append(_row(cell, metric, mine, None, None, plan, attack, constraint))
    for encoder, baseline in pairs_of(labels):
        for cell in (cell for cell in plan.cells if cell.encoder == encoder and cell.protocol != "floor"):
            other = Cell(baseline, cell.protocol, baseline if cell.protocol == "adaptive" else cell.source, cell.k)
            for metric in FIELDS:
                mine, theirs = values.get((cell, metric)), values.get((other, metric))
                if mine and theirs:
                    rows.append(_row(cell, metric, mine, theirs, baseline, plan, attack, constraint))
    return rows


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
    row = bare_row(cell, metric, plan, attack, constraint) | {"baseline": baseline, "n": len(order)}
    return row | {"mean": interval.mean, "ci_low": interval.ci_low, "ci_high": interval.ci_high}


def bare_row(cell: Cell, metric: str, plan: Plan, attack: str, constraint: str) -> dict[str, Any]:
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


def pairs_of(labels: Sequence[str]) -> list[tuple[str, str]]:
    """(encoder, baseline) of every difference."""
    return [(b, a) if a == labels[0] else (a, b) for a, b in combinations(labels, 2)]
