"""Host time of the candidate stage: microseconds of one thread for each candidate, and the captions a second it allows.

    python benchmarks/host.py --captions captions.txt

The tower is so small (8 wide, one layer, CLIP's own tokenizer) that nearly all of the time goes into candidates: their
tokens, the constraint, what is equal, and the forest. "first" has nothing remembered; "again" repeats the attack on the same
encoder and constraint, as another epoch would.
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import pstats
from dataclasses import replace
from pathlib import Path

import torch
from baselines import SENTENCES, SHAPES, clock, tower  # before what imports transformers

# isort: split
from attacks import Case
from rich.console import Console
from rich.table import Table

from leaf_diffusion.attacks import Charmer, LeafAttack
from leaf_diffusion.attacks.base import bind_constraint, generators
from leaf_diffusion.finetune.textfare import AnchorDrift, embed
from leaf_diffusion.scoring import Scorer
from leaf_diffusion.text import NoNewWords

CHARMER = Charmer(n_positions=20, batch_prompts=96)
CASES = (
    Case("Charmer n=20, k=2, constrained", CHARMER, 96, NoNewWords(), k=2),
    Case("Charmer n=20, k=1", CHARMER, 96),
    Case("LEAF rho=50, batch 96", LeafAttack(rho=50), 96),
    Case("LEAF rho=16, 4 slots, batch 48, constrained", LeafAttack(rho=16, slots=4), 48, NoNewWords()),
)


def attacked(case: Case, encoder: object, sentences: list[str]) -> tuple[float, int, str]:
    """CPU seconds of one attack, its candidates, and a digest of the texts it found."""
    prompts = sentences[: case.sentences]
    score = Scorer(encoder, AnchorDrift(embed(encoder, prompts))).bind(prompts)  # type: ignore[arg-type]
    started = clock(torch.device("cpu"))
    allowed, rngs = bind_constraint(case.constraint, prompts), generators(prompts, 0)
    texts = case.attack.run(prompts, score, k=case.k, allowed=allowed, rngs=rngs, on_step=None)
    taken = clock(torch.device("cpu")) - started
    return taken, sum(score.queries), hashlib.sha256("\n".join(map(str, texts)).encode()).hexdigest()[:8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, help="a text file, one caption a line; default: some of our own")
    parser.add_argument("--shape", choices=list(SHAPES), default="host")
    parser.add_argument("--turns", type=int, default=3, help="the fastest of them counts")
    parser.add_argument(
        "--cases", nargs="+", type=int, default=range(len(CASES)), help="rows of the table; default: all"
    )
    parser.add_argument("--profile", action="store_true", help="also the functions that take most of a first time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = options.captions.read_text().split("\n") if options.captions else SENTENCES["many"]
    sentences = [line.strip() for line in given if line.strip()]
    table = Table(title=f"host time, {options.shape} tower, one thread")
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
            encoder, fresh = tower(options.shape), replace(case, constraint=case.constraint and NoNewWords())
            taken, candidates, found = attacked(fresh, encoder, sentences)
            first.append(taken)
            again.append(attacked(fresh, encoder, sentences)[0])
        if options.profile:
            encoder, fresh = tower(options.shape), replace(case, constraint=case.constraint and NoNewWords())
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
