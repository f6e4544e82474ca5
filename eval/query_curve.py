"""How many queries an attacker needs: accuracy against random edits, exactly, and against Charmer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import track
from rich.table import Table
from torch import Tensor

from leaf_diffusion.attacks import Charmer
from leaf_diffusion.attacks.base import bind_constraint
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.metrics import paired_bootstrap
from leaf_diffusion.scoring.objectives import Margin
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import constraint_from_name
from leaf_diffusion.text.edits import neighbours

QUERIES = (1, 3, 10, 30, 100, 300, 1000, 3000)
CHARMER_POSITIONS = (1, 5, 20)


@dataclass(frozen=True)
class Captions:
    """What was found for each caption: is it right untouched, how many edits are allowed, how many of them flip it; and
    for each number of Charmer's positions whether it held, and after how many queries."""

    right: list[bool]
    edits: list[int]
    flips: list[int]
    charmer: dict[int, list[tuple[bool, int]]]

    def robust(self) -> list[float]:
        """1 or 0 a caption: right under every allowed single edit."""
        return [float(right and not flips) for right, flips in zip(self.right, self.flips, strict=True)]

    def against_random(self, queries: int) -> list[float]:
        """The probability a caption that it holds against so many distinct random allowed edits."""
        return [
            _none_drawn(edits, flips, queries) if right else 0.0
            for right, edits, flips in zip(self.right, self.edits, self.flips, strict=True)
        ]


def search(
    encoder: TextEncoder, texts: Sequence[str], labels: Sequence[int], anchors: Tensor, constraint: str
) -> Captions:
    """Every allowed single edit of the captions of `labels`, each scored among all classes, and Charmer's search for one."""
    rule, found = constraint_from_name(constraint), Captions([], [], [], {n: [] for n in CHARMER_POSITIONS})
    for label in track(labels, description=encoder.name):
        # one caption a call: then only this caption's few edits are held at a time
        text, scorer = texts[label], Scorer(encoder, Margin(anchors, [label]))
        score, edits = scorer.bind([text]), neighbours(text)
        edits = edits[bind_constraint(rule, [text])(0, text, edits)]
        found.right.append(score.clean()[0] <= 0)
        found.edits.append(len(edits))
        found.flips.append(int((score([edits])[0] > 0).sum()))
        for n, tried in found.charmer.items():
            result = Charmer(n_positions=n)([text], scorer, k=1, constraint=rule)[0]
            tried.append((result.score <= 0, result.queries))
    return found


def _none_drawn(edits: int, flips: int, queries: int) -> float:
    """The probability that `queries` distinct ones of `edits` hold none of the `flips` among them."""
    queries = min(queries, edits)
    if queries > edits - flips:
        return 0.0
    return math.exp(_log_choose(edits - flips, queries) - _log_choose(edits, queries))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def curve_points(found: Captions) -> list[dict[str, Any]]:
    """Accuracy with its interval at each number of queries; of Charmer at its mean number."""
    points = [("random", float(q), found.against_random(q)) for q in (*QUERIES, max(found.edits))]
    for positions, tried in found.charmer.items():
        mean_queries = sum(queries for _, queries in tried) / len(tried)
        points.append((f"charmer, n={positions}", mean_queries, [float(held) for held, _ in tried]))
    return [{"attack": attack, "queries": queries} | interval(held) for attack, queries, held in points]


def interval(values: list[float], against: list[float] | None = None) -> dict[str, float]:
    """Mean (or mean paired difference) with its 95% interval."""
    found = paired_bootstrap(values, against)
    return {"mean": found.mean, "ci_low": found.ci_low, "ci_high": found.ci_high, "n": found.n}


def plot(curve: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy over queries: lines for random edits, marks for Charmer, 95% intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    for i, name in enumerate(dict.fromkeys(point["encoder"] for point in curve)):
        for attack, style in (("random", "-"), ("charmer", "D")):
            points = [p for p in curve if p["encoder"] == name and p["attack"].startswith(attack)]
            x, y, low, high = ([p[key] for p in points] for key in ("queries", "mean", "ci_low", "ci_high"))
            axis.plot(
                x, y, style, color=f"C{i}", label=f"{name}, {'random edits' if attack == 'random' else 'Charmer'}"
            )
            if attack == "random":
                axis.fill_between(x, low, high, color=f"C{i}", alpha=0.15, linewidth=0)
            else:
                axis.vlines(x, low, high, color=f"C{i}")
    axis.set(xscale="log", xlabel="queries a caption", ylabel="captions still right", ylim=(-0.02, 1.02))
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path)


def curve_table(curve: Sequence[dict[str, Any]], names: Sequence[str]) -> Table:
    """The curve for the terminal: a line an attacker, a column an encoder."""
    table = Table("attacker", *names, title="captions still right (mean queries of Charmer)")
    for attack, queries in dict.fromkeys((p["attack"], p["queries"] if p["attack"] == "random" else 0) for p in curve):
        cells = []
        for name in names:
            found = next(
                (p for p in curve if p["encoder"] == name and p["attack"] == attack and queries in (0, p["queries"])),
                None,
            )
            asked = "" if found is None or queries else f" ({found['queries']:.0f})"
            cells.append("" if found is None else f"{found['mean']:.3f}{asked}")
        table.add_row(f"{queries:.0f} random edits" if queries else attack, *cells)
    return table
