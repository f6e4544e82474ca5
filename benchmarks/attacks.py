"""Time of an attack by three scorers in one process, in turn, as ratios.

    python benchmarks/attacks.py --shape small vit-l
    python benchmarks/attacks.py --shape vit-l --device cuda --dtype bf16 fp32

"published" is the algorithm as the paper's code runs it, "plain" a sensible engineer's version (candidates
deduplicated, sorted by length, trimmed, batched), "prefix" the engine, also with screening. The last column is the
share of the machine's matrix-product rate, measured in the same turn, that the tokens truly needed reach.

On a GPU (`gpu_attacks.py`) the sides differ too much to attack equally many captions: each says how many it attacked, its
captions a second and its peak memory, all sides on the one device.
"""

from __future__ import annotations

import argparse

import numpy as np
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

from leaf_diffusion.encoders import Hidden


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["small"])
    parser.add_argument("--sentences", choices=list(SENTENCES), default="coco", help="what is attacked")
    parser.add_argument("--turns", type=int, default=3, help="turns; the fastest of each side counts")
    parser.add_argument(
        "--cases", nargs="+", type=int, help=f"rows of the table, of 0 to {len(CASES) - 1}; default: all"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", choices=["fp32", "bf16", "fp16"], default=["fp32"], help="on a GPU")
    parser.add_argument("--captions", type=int, help="on a GPU: captions that the engine attacks; default 96")
    parser.add_argument("--profile", action="store_true", help="on a GPU: also where the engine's time goes")
    options = parser.parse_args()
    if torch.device(options.device).type != "cpu":
        from gpu_attacks import measure

        for shape in options.shape:
            given = options.captions or 96, options.turns, options.cases
            for dtype in options.dtype:
                measure(shape, torch.device(options.device), dtype, *given, profile=options.profile)
        return
    if options.dtype != ["fp32"] or options.captions or options.profile:
        parser.error("--dtype, --captions and --profile are for --device cuda; on a CPU towers are float32")
    torch.set_num_threads(1)  # one thread: its CPU time is that of the work, whatever else the machine does
    console = Console(width=140)
    for shape in options.shape:
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


if __name__ == "__main__":
    main()
