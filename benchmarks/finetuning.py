"""Captions a second of a TextFARE update, before and after the engine, in one process and in turn.

    python benchmarks/finetuning.py --shape small --rho 50 --batch-size 16

"published": the attack scores every candidate padded to the whole context, and so does the update. "plain": candidates
deduplicated and trimmed, the update trimmed to its longest caption. "prefix": the attack on the engine, the update in buckets of like
length.
"""

from __future__ import annotations

import argparse
from time import perf_counter

import torch
from baselines import COCO, SHAPES, tower
from rich.console import Console
from rich.table import Table

from leaf_diffusion.attacks import LeafAttack
from leaf_diffusion.encoders import HFTextEncoder
from leaf_diffusion.finetune import anchors
from leaf_diffusion.finetune.anchors import AnchorDrift, attack_captions, bucketed, embed, textfare_loss
from leaf_diffusion.finetune.loop import new_optimiser
from leaf_diffusion.finetune.tower import trainable_copy
from leaf_diffusion.scoring import Scorer
from leaf_diffusion.text import NoNewWords

ENGINE = {"published": "published-training", "plain": "plain", "prefix": "prefix"}


def update(
    side: str,
    original: HFTextEncoder,
    trained: HFTextEncoder,
    optimiser: torch.optim.Optimizer,
    rho: int,
    batch: list[str],
) -> tuple[float, float]:
    """Seconds of the attack and of the whole update."""

    def scorer(encoder: HFTextEncoder, objective: AnchorDrift, **_: object) -> Scorer:
        return Scorer(encoder, objective, ENGINE[side])  # type: ignore[arg-type]

    anchors.Scorer = scorer  # type: ignore[assignment, misc]
    started = perf_counter()
    clean = embed(original, batch)
    attacked = attack_captions(LeafAttack(rho=rho), trained, batch, clean, k=1, constraint=NoNewWords(), seed=0)
    searched = perf_counter() - started
    rows = trained.tokenize(attacked)
    if side == "published":
        rows = [[*row, *[row[-1]] * (trained.context_length - len(row))] for row in rows]
    features = bucketed(trained.features, rows) if side == "prefix" else trained.features(rows)
    textfare_loss(features, clean).backward()
    optimiser.step()
    optimiser.zero_grad()
    return searched, perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--rho", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    original = tower(options.shape)
    trained = HFTextEncoder(trainable_copy(original), original.tokenizer, name="trained")
    optimiser = new_optimiser(trained.module, lr=1e-6, weight_decay=1e-4)
    batch = [COCO[i % len(COCO)] for i in range(options.batch_size)]
    update("prefix", original, trained, optimiser, options.rho, batch)
    best = {
        side: min(
            (update(side, original, trained, optimiser, options.rho, batch) for _ in range(options.turns)),
            key=lambda pair: pair[1],
        )
        for side in ENGINE
    }
    table = Table(title=f"{options.shape}, rho {options.rho}, batch {options.batch_size}, {options.threads} thread(s)")
    for column in ("side", "captions/s", "against published", "share of the attack"):
        table.add_column(column)
    for side, (searched, whole) in best.items():
        table.add_row(
            side, f"{len(batch) / whole:.1f}", f"{best['published'][1] / whole:.1f}x", f"{searched / whole:.0%}"
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
