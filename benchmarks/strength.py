"""How strong the attacks are: the drift that each finds against the best that any finds, and what it asks for it.

    python benchmarks/strength.py --limit 24
    python benchmarks/strength.py --limit 24 --k 2 3
    python benchmarks/strength.py --limit 24 --margin

At one edit the best is that of all edits (`Exhaustive`), so its column is exact; at more it is the best of all searches here, a
lower bound of the worst case. A share is the drift over the best drift, mean and lowest over prompts; seconds are the processor's.
With `--margin` the world's zero-shot task is attacked: how many captions hold, and the queries, each search ending at its first
flip.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from leaf_diffusion import Drift, Scorer, load_text_encoder
from leaf_diffusion.attacks import Attack, AttackResult, Charmer, ExactOrBeam, Exhaustive, Genetic, LeafAttack
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.evaluation.tasks.text import world_task
from leaf_diffusion.scoring import Margin
from leaf_diffusion.text import Constraint, constraint_from_name
from leaf_diffusion.world.captions import world_prompts

PROBE = " xe1-"
SEARCHES: dict[str, Attack] = {
    "leaf": LeafAttack(),
    "charmer n=20": Charmer(),
    "charmer n=40": Charmer(n_positions=40),
    "charmer n=10, probes": Charmer(n_positions=10, probe=PROBE),
    "charmer n=20, probes": Charmer(n_positions=20, probe=PROBE),
    "beam 5, n=20": Charmer(beam=5),
    "beam 5, n=10, probes": Charmer(beam=5, n_positions=10, probe=PROBE),
    "beam 5, n=40": Charmer(beam=5, n_positions=40),
    "exact or beam": ExactOrBeam(),
    "genetic 100 x 30": Genetic(population=100, generations=30),
    "genetic 200 x 50": Genetic(population=200, generations=50),
}
MARGINS = ("charmer n=20", "charmer n=10, probes", "beam 5, n=10, probes", "exact or beam", "genetic 200 x 50")


def timed(
    attack: Attack, prompts: Sequence[str], scorer: Scorer, ks: Sequence[int], rule: Constraint | None
) -> tuple[dict[int, list[AttackResult]], float]:
    started = time.process_time()
    return attack.path(prompts, scorer, ks, constraint=rule, seed=0), time.process_time() - started


def drifts(
    console: Console, label: str, encoder: TextEncoder, prompts: Sequence[str], rule_name: str, ks: Sequence[int]
) -> None:
    rule, scorer = constraint_from_name(rule_name), Scorer(encoder, Drift("l2"))
    found = {name: timed(attack, prompts, scorer, ks, rule) for name, attack in SEARCHES.items()}
    if 1 in ks:
        found["exhaustive"] = timed(Exhaustive(), prompts, scorer, (1,), rule)
    table = Table(title=f"{label}, {rule_name}, {len(prompts)} prompts")
    shares = [(f"k={k}: of {'exact' if k == 1 else 'best found'}, mean (lowest)", "queries") for k in ks]
    for column in ("attack", *(name for pair in shares for name in pair), "seconds"):
        table.add_column(column)
    scores = {
        name: {k: np.array([r.score for r in each]) for k, each in paths.items()} for name, (paths, _) in found.items()
    }
    best = {k: np.max([each[k] for each in scores.values() if k in each], axis=0) for k in ks}
    for name, (paths, seconds) in found.items():
        cells = []
        for k in ks:
            if k in paths:
                share = scores[name][k] / best[k]
                cells += [f"{share.mean():.3f} ({share.min():.2f})", f"{np.mean([r.queries for r in paths[k]]):,.0f}"]
            else:
                cells += ["", ""]
        table.add_row(name, *cells, f"{seconds:.1f}")
    console.print(table)


def margins(console: Console, label: str, encoder: TextEncoder, limit: int, rule_name: str) -> None:
    rule, task = constraint_from_name(rule_name), world_task(8)
    numbers = task.spread(limit)
    texts, labels = [task.texts[i] for i in numbers], [task.labels[i] for i in numbers]
    scorer = Scorer(encoder, Margin(task.anchors(encoder), labels))
    table = Table(title=f"{label}, {rule_name}, {len(texts)} captions of the zero-shot task")
    for column in ("attack", "k", "hold", "queries", "seconds"):
        table.add_column(column)
    tried: list[tuple[str, Attack, int]] = [("exhaustive", Exhaustive(), 1)]
    tried += [(name, SEARCHES[name], k) for name in MARGINS for k in (1, 2)]
    for name, attack, k in tried:
        paths, seconds = timed(attack, texts, scorer, (k,), rule)
        hold = sum(not r.success for r in paths[k])
        table.add_row(name, str(k), str(hold), f"{sum(r.queries for r in paths[k]):,}", f"{seconds:.1f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["world:original", "world:leaf"])
    parser.add_argument("--constraints", nargs="+", default=["no-new-words", "none"])
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--margin", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console, prompts = Console(width=140), [prompt.text for prompt in world_prompts(options.limit, seed=7, two=0.3)]
    for name in options.encoders:
        encoder = load_text_encoder(name)
        for rule in options.constraints:
            if options.margin:
                margins(console, name, encoder, options.limit, rule)
            else:
                drifts(console, name, encoder, prompts, rule, options.k)


if __name__ == "__main__":
    main()
