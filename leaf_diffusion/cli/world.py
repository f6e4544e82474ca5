"""`leaf-diffusion world build`: train the embedded world; `leaf-diffusion world show`: look at it."""

import argparse
import os
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from leaf_diffusion.world.paths import VARIABLE
from leaf_diffusion.world.scenes import render, sample_scene


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="leaf-diffusion world", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="train every part that has no card yet; goes on where it stopped")
    build.add_argument(
        "--output", type=Path, help=f"folder of the weights (default: the package's own; {VARIABLE} points to another)"
    )
    build.add_argument("--work", type=Path, default=Path("build/world"), help="folder of checkpoints")
    build.add_argument("--parts", nargs="+", help="only these parts, in this order")
    build.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    build.add_argument("--threads", type=int, help="CPU threads")
    show = commands.add_parser("show", help="draw a sheet of scenes")
    show.add_argument("--output", type=Path, default=Path("scenes.png"))
    show.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.command == "show":
        rng = random.Random(options.seed)
        cells = [
            np.pad(render(sample_scene(rng, three=0.25, counted=0.2, split=None)), ((1, 1), (1, 1), (0, 0)))
            for _ in range(96)
        ]
        sheet = np.concatenate([np.concatenate(cells[i : i + 16], 1) for i in range(0, 96, 16)])
        Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Image.Resampling.NEAREST).save(
            options.output
        )
        print(f"drew 96 scenes into {options.output}")
        return 0
    if options.output is not None:
        os.environ[VARIABLE] = str(options.output.resolve())
    if options.threads:
        torch.set_num_threads(options.threads)
    from leaf_diffusion.world.build import PARTS, build_part

    parts = options.parts or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    for part in parts:
        figures = build_part(part, options.work, torch.device(options.device))
        print(f"{part}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()), flush=True)
    return 0
