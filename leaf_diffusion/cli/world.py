"""`leaf-diffusion world build`: train the embedded world; `leaf-diffusion world show`: look at it."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from leaf_diffusion.command_line import did_you_mean, parse, run_command
from leaf_diffusion.evaluation.options import resolve_device
from leaf_diffusion.world.paths import VARIABLE
from leaf_diffusion.world.scenes import render, sample_scene

USAGE = """usage: leaf-diffusion world {build,show} [options]

  build   train every part that has no card yet; goes on where it stopped
  show    draw a sheet of scenes

`leaf-diffusion world build --help` lists its options."""


@dataclass(frozen=True)
class BuildOptions:
    """Train every part of the embedded world that has no card yet; goes on where it stopped."""

    output: Path | None = None
    """Folder of the weights. Default: the package's own; the environment variable LEAF_DIFFUSION_WORLD points to another."""
    work: Path = Path("build/world")
    """Folder of checkpoints."""
    parts: tuple[str, ...] = ()
    """Only these parts, in this order."""
    device: str = "auto"
    """auto (a GPU where there is one, else the CPU), cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads."""


@dataclass(frozen=True)
class ShowOptions:
    """Draw a sheet of 96 scenes."""

    output: Path = Path("scenes.png")
    """The image to write."""
    seed: int = 0


def build(options: BuildOptions) -> None:
    """Train the parts; ValueError names an unknown one."""
    if options.output is not None:
        os.environ[VARIABLE] = str(options.output.resolve())
    if options.threads:
        torch.set_num_threads(options.threads)
    from leaf_diffusion.world.build import PARTS, build_part

    parts = options.parts or tuple(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"no part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    device = torch.device(resolve_device(options.device))
    for part in parts:
        figures = build_part(part, options.work, device)
        print(f"{part}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()), flush=True)


def show(options: ShowOptions) -> None:
    """Draw the sheet."""
    rng = random.Random(options.seed)
    drawn = [render(sample_scene(rng, three=0.25, counted=0.2, split=None)) for _ in range(96)]
    cells = [np.pad(each, ((1, 1), (1, 1), (0, 0))) for each in drawn]
    sheet = np.concatenate([np.concatenate(cells[i : i + 16], 1) for i in range(0, 96, 16)])
    twice = (sheet.shape[1] * 2, sheet.shape[0] * 2)
    Image.fromarray(sheet).resize(twice, Image.Resampling.NEAREST).save(options.output)
    print(f"drew 96 scenes into {options.output}")


def world(words: Sequence[str]) -> int:
    """Build or show."""
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2
    command, *rest = words
    if command == "build":
        build(parse(BuildOptions, rest, command="world build"))
    elif command == "show":
        show(parse(ShowOptions, rest, command="world show"))
    else:
        close = did_you_mean(command, ("build", "show"))
        raise ValueError(f"there is no command {command!r}{close or '; there are: build, show'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("world", world, argv)
