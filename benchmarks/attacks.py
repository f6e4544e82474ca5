"""Time of an attack by three scorers in one process, in turn, as ratios.

    python benchmarks/attacks.py --shape small vit-l
    python benchmarks/attacks.py --shape --world 48
    python benchmarks/attacks.py --shape qwen3-tiny gemma2-2b

"published" is the algorithm as the paper's code runs it, "plain" a sensible engineer's version (candidates
deduplicated, sorted by length, trimmed, batched), "prefix" the engine, also with screening. The last column is the
share of the machine's matrix-product rate, measured in the same turn, that the tokens truly needed reach.

`--world N` compares searches on N prompts of the embedded world, no new words: Charmer with the paper's 20 positions against 10
that several probes rank (seconds, and the mean drift found), and margin attacks on N captions of the zero-shot task that end
at the first flip against those that do not (queries and seconds; as many captions hold). The ratio of seconds is the median
of its turns. A GPU is measured by `gpu.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import process_time

import numpy as np
import sequences
import torch
from baselines import (
    SENTENCES,
    SHAPES,
    needed_operations,
    product_limit,
    tower,
)
from cases import CASES, counting, run
from rich.console import Console
from rich.table import Table
from sequences import SIZES

from leaf_diffusion.attacks import Attack, AttackResult, Charmer, Exhaustive
from leaf_diffusion.encoders import Hidden, load_text_encoder
from leaf_diffusion.encoders.base import Feature, TextEncoder
from leaf_diffusion.evaluation.tasks.text import world_task
from leaf_diffusion.scoring import Drift, Goal, Margin, Objective, Scorer
from leaf_diffusion.text import Constraint, NoNewWords
from leaf_diffusion.world.captions import world_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="*", choices=[*SHAPES, *SIZES], default=["small"])
    parser.add_argument("--sentences", choices=list(SENTENCES), default="coco", help="what is attacked")
    parser.add_argument("--turns", type=int, default=3, help="turns; the fastest of each side counts")
    parser.add_argument(
        "--cases", nargs="+", type=int, help=f"rows of the table, of 0 to {len(CASES) - 1}; default: all"
    )
    parser.add_argument("--world", type=int, metavar="N", help="also the searches on N prompts of the embedded world")
    options = parser.parse_args()
    torch.set_num_threads(1)  # one thread: its CPU time is that of the work, whatever else the machine does
    console = Console(width=140)
    for shape in options.shape:
        if shape in SIZES:
            console.print(sequences.table(shape, options.sentences, options.turns))
            continue
        encoder = tower(shape)
        table = Table(title=f"{shape}, {options.sentences} captions, one thread, float32: CPU seconds, and ratios")
        for column in ("attack", "published", "plain", "prefix", "screened", "published / prefix", "plain / prefix",
                       "published / screened", "of the product rate"):  # fmt: skip
            table.add_column(column)
        for case in [CASES[i] for i in options.cases or range(len(CASES))]:
            sides: dict[str, tuple[str, str]] = {
                "published": (case.published, "fp32"), "plain": ("plain", "fp32"), "prefix": ("prefix", "fp32"),
                "screened": ("prefix", "screen"),
            }  # fmt: skip
            run(case, encoder, SENTENCES[options.sentences], "prefix", "screen")  # memo and kernels warm for everybody
            with counting() as counted:
                run(case, encoder, SENTENCES[options.sentences], "prefix")
            times: dict[str, list[float]] = {side: [] for side in sides}
            limits = []
            for turn in range(max(1, options.turns)):
                for side, (engine, precision) in sides.items():
                    if turn == 0 or side not in ("published", "plain"):  # the slow sides vary little
                        times[side].append(run(case, encoder, SENTENCES[options.sentences], engine, precision))
                limits.append(product_limit(encoder.config.hidden_size))
            best = {side: min(values) for side, values in times.items()}
            counts = encoder, counted.nodes, counted.rows, counted.keys, isinstance(case.feature, Hidden)
            rate = needed_operations(*counts) / best["prefix"]
            table.add_row(
                case.name,
                *(f"{best[side]:.2f}" for side in sides),
                f"{best['published'] / best['prefix']:.1f}x",
                f"{best['plain'] / best['prefix']:.1f}x",
                f"{best['published'] / best['screened']:.1f}x",
                f"{rate / np.max(limits):.0%}",
            )
        console.print(table)
    if options.world:
        searches(console, options.world, max(1, options.turns))


def searches(console: Console, n: int, turns: int) -> None:
    """Two tables: what probes and the early end of a margin attack are worth."""
    prompts, task = [prompt.text for prompt in world_prompts(n, seed=7, two=0.3)], world_task(8)
    numbers = task.spread(n)
    texts, labels = [task.texts[i] for i in numbers], [task.labels[i] for i in numbers]
    probes = Table("encoder", "k", "seconds, n=20 / n=10 with probes", "queries", "drift, with probes / n=20")
    margins = Table("encoder", "attack", "hold, without / with an end", "queries", "seconds")
    for name in ("world:original", "world:leaf"):
        encoder, rule = load_text_encoder(name), NoNewWords()
        scorer = Scorer(encoder, Drift("l2"))
        for k in (1, 2):
            sides = [timed(Charmer(), prompts, scorer, rule, k), timed(PROBED, prompts, scorer, rule, k)]
            seconds, queries, (old, new) = compared(sides, turns)
            drift = np.mean([r.score for r in new]) / np.mean([r.score for r in old])
            probes.add_row(name, str(k), f"{seconds:.2f}x", f"{queries:.2f}x", f"{drift:.3f}x")
        ends = Margin(task.anchors(encoder), labels)
        for attack in (Exhaustive(), Charmer()):
            sides = [timed(attack, texts, Scorer(encoder, each), rule, 1) for each in (Endless(ends), ends)]
            seconds, queries, results = compared(sides, turns)
            hold = " / ".join(str(sum(r.score <= 0 for r in each)) for each in results)
            margins.add_row(name, attack.name, hold, f"{queries:.1f}x", f"{seconds:.1f}x")
    console.print(probes, margins)


PROBED = Charmer(n_positions=10, probe=" xe1-")
Side = Callable[[], tuple[float, list[AttackResult]]]


@dataclass(frozen=True)
class Endless:
    """An objective whose attacks go on when they have reached it."""

    objective: Objective

    @property
    def name(self) -> str:
        return self.objective.name

    @property
    def feature(self) -> Feature:
        return self.objective.feature

    def goals(self, encoder: TextEncoder, prompts: Sequence[str]) -> list[Goal]:
        return [replace(goal, solved_above=float("inf")) for goal in self.objective.goals(encoder, prompts)]


def timed(attack: Attack, prompts: list[str], scorer: Scorer, rule: Constraint, k: int) -> Side:
    """CPU seconds of the attack, and what it finds."""

    def call() -> tuple[float, list[AttackResult]]:
        started = process_time()
        results = attack(prompts, scorer, k=k, constraint=rule)
        return process_time() - started, results

    return call


def compared(sides: Sequence[Side], turns: int) -> tuple[float, float, list[list[AttackResult]]]:
    """First over second: the median ratio of seconds, the ratio of queries; and the results."""
    for side in sides:  # memo warm for both
        side()
    pairs = [[side() for side in sides] for _ in range(turns)]
    results = [found for _, found in pairs[0]]
    first, second = (sum(r.queries for r in each) for each in results)
    return float(np.median([a[0] / b[0] for a, b in pairs])), first / second, results


if __name__ == "__main__":
    main()
