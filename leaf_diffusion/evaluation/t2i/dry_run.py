"""`--dry-run`: what a run would load, whether it fits, and how long it would take by a measured sample."""

from __future__ import annotations

import dataclasses
import os
import resource
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from leaf_diffusion.evaluation.t2i.attack import attack_all
from leaf_diffusion.evaluation.t2i.generate import draw_all
from leaf_diffusion.evaluation.t2i.judges import Judges
from leaf_diffusion.evaluation.t2i.score import score_all
from leaf_diffusion.evaluation.t2i.screen import totals
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.evaluation.t2i.specification import open_store

MIB = 2**20


def dry_run(console: Console, setup: Setup, judges: Judges) -> None:
    """Print parts, work and time. One prompt goes through the whole run, in a temporary folder; nothing else is kept.

    Times of the whole are the sample's, multiplied: said as such, with what they rest on.
    """
    console.print(_parts(setup))
    sample = dataclasses.replace(
        setup, prompts=setup.prompts[:1], plan=dataclasses.replace(setup.plan, prompts=setup.prompts[:1])
    )
    with tempfile.TemporaryDirectory(prefix="leaf-dry-run-") as folder, console.status("measuring one prompt"):
        sample = dataclasses.replace(sample, options=dataclasses.replace(setup.options, output=Path(folder) / "run"))
        with open_store(sample, judges, []) as store:
            attacked, times = _timed(lambda: attack_all(sample, store, _ignore)), {}
            times["attacks"] = attacked[1]
            times["images"] = _timed(lambda: draw_all(sample, store, attacked[0], _ignore))[1]
            times["scores"] = _timed(lambda: score_all(sample, judges, store, _ignore))[1]
    measured, whole = totals(sample), totals(setup)
    table = Table(title="work, and time by one prompt's", box=SIMPLE_HEAD, title_justify="left")
    for column in ("", "units", "measured", "estimate"):
        table.add_column(column, justify="left" if not column else "right")
    total = 0.0
    for name, seconds in times.items():
        estimate = seconds / measured[name] * whole[name] if measured[name] else 0.0
        total += estimate
        table.add_row(name, f"{whole[name]:,}", f"{measured[name]} in {seconds:.1f} s", _span(estimate))
    table.add_row("together", "", "", _span(total))
    console.print(table)
    console.print(f"memory: {_memory(setup.options.device)}", highlight=False, soft_wrap=True)
    console.print(
        "nothing was kept. Longer prompts, other batch sizes and a busy machine move these times.", soft_wrap=True
    )


def _parts(setup: Setup) -> Table:
    table = Table(title="what is loaded, and fits together", box=SIMPLE_HEAD, title_justify="left")
    for column in ("part", "class", "parameters", "precision", "MiB"):
        table.add_column(column, justify="right" if column in ("parameters", "MiB") else "left")
    pipeline = setup.pipeline
    parts = {name: each for name, each in pipeline.components.items() if isinstance(each, nn.Module)}
    for label, one in {**setup.encoders, **setup.neutral}.items():
        numbers = [""] if len(one.bases) == 1 else [f" {i + 1}" for i in range(len(one.bases))]
        parts |= {f"encoder {label}{i}": base.module for i, base in zip(numbers, one.bases, strict=True)}
    for name, module in parts.items():
        tensors = list(module.parameters())
        table.add_row(
            escape(name),
            type(module).__name__,
            f"{sum(t.numel() for t in tensors) / 1e6:.1f} M",
            ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors})),
            f"{sum(t.numel() * t.element_size() for t in tensors) / MIB:.0f}",
        )
    return table


def _memory(device: str) -> str:
    if device.startswith("cuda"):
        free, whole = torch.cuda.mem_get_info(device)
        return (
            f"{torch.cuda.max_memory_allocated(device) / MIB:,.0f} MiB at most were used on {device} "
            f"({whole / MIB:,.0f} MiB, {free / MIB:,.0f} free now), at one prompt's images a batch"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MIB
    return (
        f"{peak:,.0f} MiB at most were used by this process, at one prompt's images a batch, "
        f"of {whole:,.0f} MiB that this machine has"
    )


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = monotonic()
    result = work()
    return result, monotonic() - started


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _ignore(_: int) -> None:
    """No progress bar for a sample."""
