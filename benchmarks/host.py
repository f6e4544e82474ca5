"""Host time of the candidate stage: microseconds of one thread for each candidate, and the captions a second it allows.

    python benchmarks/host.py --captions captions.txt

Candidates' tokens, the constraint, what is equal, forests, scores and choices: all but the tower's own computation, whose
time is taken out (the tower is 8 wide with one layer, and CLIP's own tokenizer). "first" has nothing remembered; "again"
repeats the attack on the same encoder and constraint, as another epoch would. Forests are those of a GPU (up to 65,536
tokens) or, with `--like cpu`, of a CPU (4096).
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import pstats
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

import torch
from baselines import SENTENCES, tower  # before what imports transformers

# isort: split
from cases import Case
from rich.console import Console
from rich.table import Table

from leaf_diffusion.attacks import Charmer, LeafAttack
from leaf_diffusion.attacks.base import Problem
from leaf_diffusion.finetune.anchors import AnchorDrift, embed
from leaf_diffusion.scoring import Scorer, plain, prefix_forest
from leaf_diffusion.text import NoNewWords

CHARMER = Charmer(n_positions=20, batch_prompts=96)
CASES = (
    Case("Charmer n=20, k=2, constrained", CHARMER, 96, NoNewWords(), k=2),
    Case("Charmer n=20, k=1", CHARMER, 96),
    Case("LEAF rho=50, batch 96", LeafAttack(rho=50), 96),
    Case("LEAF rho=16, 4 slots, batch 48, constrained", LeafAttack(rho=16, slots=4), 48, NoNewWords()),
)
COMPUTED = [0.0]


def counted(function: Callable[..., Any], sign: int) -> Callable[..., Any]:
    """The function; its CPU time is added to what the tower computed (or taken from it)."""

    def call(*given: Any) -> Any:
        started = process_time()
        result = function(*given)
        COMPUTED[0] += sign * (process_time() - started)
        return result

    return call


def attacked(case: Case, encoder: Any, sentences: list[str]) -> tuple[float, int, str]:
    """CPU seconds of one attack without the tower's, its candidates, and a digest of the texts it found."""
    prompts = sentences[: case.sentences]
    score = Scorer(encoder, AnchorDrift(embed(encoder, prompts))).bind(prompts)
    started, COMPUTED[0] = process_time(), 0.0
    texts = case.attack.run(Problem.of(prompts, score, case.k, constraint=case.constraint))
    taken = process_time() - started - COMPUTED[0]
    return taken, sum(score.queries), hashlib.sha256("\n".join(map(str, texts)).encode()).hexdigest()[:8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, help="a text file, one caption a line; default: some of our own")
    parser.add_argument("--like", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--turns", type=int, default=3, help="the fastest of them counts")
    parser.add_argument(
        "--cases", nargs="+", type=int, default=range(len(CASES)), help="rows of the table; default: all"
    )
    parser.add_argument("--profile", action="store_true", help="also the functions that take most of a first time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.like == "gpu":
        prefix_forest.few_launches, plain.CPU_TOKENS = lambda device: True, plain.GPU_TOKENS
    prefix_forest.PrefixForest._features = counted(prefix_forest.PrefixForest._features, 1)  # type: ignore[method-assign]
    prefix_forest.build_forest = counted(prefix_forest.build_forest, -1)
    given = options.captions.read_text().split("\n") if options.captions else SENTENCES["many"]
    sentences = [line.strip() for line in given if line.strip()]
    table = Table(title=f"host time of one thread, forests of a {options.like}")
    for column in (
        "attack",
        "captions",
        "candidates",
        "us each, first",
        "again",
        "captions/s, first",
        "again",
        "found",
    ):
        table.add_column(column)
    for case in [CASES[i] for i in options.cases]:
        first, again = list[float](), list[float]()
        for _ in range(options.turns):
            encoder, fresh = tower("host"), replace(case, constraint=case.constraint and NoNewWords())
            taken, candidates, found = attacked(fresh, encoder, sentences)
            first.append(taken)
            again.append(attacked(fresh, encoder, sentences)[0])
        if options.profile:
            encoder, fresh = tower("host"), replace(case, constraint=case.constraint and NoNewWords())
            with cProfile.Profile() as profiler:
                attacked(fresh, encoder, sentences)
            pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
        best = min(first), min(again)
        n = min(case.sentences, len(sentences))
        each, speeds = [f"{1e6 * taken / candidates:.2f}" for taken in best], [f"{n / taken:.0f}" for taken in best]
        table.add_row(case.name, str(n), str(candidates), *each, *speeds, found)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
