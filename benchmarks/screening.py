"""How often screening in half precision chooses what full precision chooses.

    python benchmarks/screening.py --encoder world:original --limit 600

Charmer (n=20, k=1, no new words) on each prompt, once with `precision="screen"` and once in float32: the share of equal
winners, and where they differ, how much of the float32 score is lost.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from leaf_diffusion import Charmer, Drift, NoNewWords, Scorer, load_text_encoder
from leaf_diffusion.world.captions import world_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="world:original")
    parser.add_argument(
        "--prompts", type=Path, help="a text file, one prompt a line; default: prompts of the embedded world"
    )
    parser.add_argument("--limit", type=int, default=600)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console, encoder = Console(), load_text_encoder(options.encoder, device=options.device)
    if options.prompts is None:
        prompts = [prompt.text for prompt in world_prompts(options.limit, seed=7, two=0.3)]
    else:
        prompts = [line for line in options.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    prompts = prompts[: options.limit]
    same, gaps = 0, []
    for some in track(
        [prompts[i : i + 16] for i in range(0, len(prompts), 16)], console=console, description="attacking"
    ):
        screened, full = (
            Charmer(n_positions=20)(some, Scorer(encoder, Drift("l2"), precision=precision), constraint=NoNewWords())
            for precision in ("screen", "fp32")
        )
        for mine, exact in zip(screened, full, strict=True):
            if mine.token_ids == exact.token_ids:
                same += 1
            else:
                gaps.append((exact.score - mine.score) / exact.score)
    console.print(f"{options.encoder}: {same} of {len(prompts)} winners equal ({same / len(prompts):.2%})")
    if gaps:
        console.print(
            f"where they differ, of the float32 score: mean {np.mean(gaps):.3%}, largest {max(gaps):.3%} lost"
        )


if __name__ == "__main__":
    main()
