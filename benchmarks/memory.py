"""Peak memory of a forward pass over many sentences at once, at several bounds.

    python benchmarks/memory.py --sentences 512 --bounds 64 512

Each bound is measured in a process of its own: the largest resident size during the scoring less the size before it.
That includes what grows with the candidates and not with the bound: token rows, indices, scores (a bound of 1 shows it).
With `--device cuda` it is what torch had allocated there at most, less what it had before.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def child(shape: str, sentences: int, megabytes: int, device: str) -> None:
    """Score 60 candidates a sentence; print the peak in MiB and the number of candidates."""
    import numpy as np
    import torch
    from baselines import COCO, tower

    from leaf_diffusion.scoring import Drift, Scorer
    from leaf_diffusion.text import random_edits

    torch.set_num_threads(1)
    encoder = tower(shape, device=device)
    prompts = [COCO[i % len(COCO)] + f" {i}" for i in range(sentences)]
    candidates = [random_edits(prompt, 60, np.random.default_rng(i)) for i, prompt in enumerate(prompts)]
    rows = [encoder.tokenize_candidates(some) for some in candidates]
    score = Scorer(encoder, Drift("l2"), max_bytes=megabytes << 20).bind(prompts)
    if device == "cpu":
        before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        score(candidates)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    else:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        score(candidates)
        peak = torch.cuda.max_memory_allocated(device)
    print(f"{max(0, peak - before) / 2**20:.0f} {sum(map(len, rows))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small", choices=["small", "vit-l"])
    parser.add_argument("--sentences", type=int, default=512)
    parser.add_argument("--bounds", type=int, nargs="+", default=[16, 64, 256], help="MiB")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.shape, options.sentences, options.child, options.device)
        return
    for bound in options.bounds:
        command = [sys.executable, __file__, "--shape", options.shape, "--sentences", str(options.sentences)]
        command += ["--device", options.device]
        ran = subprocess.run([*command, "--child", str(bound)], capture_output=True, text=True, check=True, cwd=HERE)
        peak, candidates = ran.stdout.split()[-2:]
        print(
            f"{options.shape}, {options.sentences} sentences, {candidates} candidates: bound {bound} MiB, peak {peak} MiB"
        )


if __name__ == "__main__":
    main()
