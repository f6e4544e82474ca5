"""`--dry-run`: what a run would load, whether it fits, and how long it would take by a measured sample."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from leaf_diffusion.evaluation.stages import Stage
from leaf_diffusion.runs import RunSpec, RunStore
from leaf_diffusion.runs.scheduler import run_batches

MIB = 2**20


class Sample(Protocol):
    """The part of an experiment that is measured."""

    folder: Path

    def stages(self) -> Sequence[Stage[Any]]: ...


@dataclass(frozen=True)
class Measured:
    """Units of a stage that were computed, in so many seconds."""

    units: int
    seconds: float

    def estimate(self, units: int) -> float:
        """Seconds that so many would take."""
        return self.seconds / self.units * units if self.units else 0.0


def dry_run(
    console: Console,
    sample: Sample,
    spec: RunSpec,
    stages: Sequence[Stage[Any]],
    modules: Mapping[str, nn.Module],
    *,
    whole: bool,
) -> None:
    """Print parts, work and time. The sample is computed in a temporary folder; nothing is kept.

    stages: of the run itself. whole: whether all units of the sample are computed, or the first batch of each stage.
    Times are the sample's, multiplied: said as such, with what they rest on.
    """
    console.print(_parts(modules))
    measured: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory(prefix="leaf-dry-run-") as folder, console.status("measuring a sample"):
        sample.folder = Path(folder) / "run"
        planned = sample.stages()
        with RunStore.open(sample.folder, spec, kinds={stage.kind: stage.record for stage in planned}) as store:
            for stage in planned:
                batches, started = stage.batches(store, strict=bool(spec.settings.get("strict"))), monotonic()
                run_batches(store, stage.kind, batches if whole else batches[:1], lambda _: None)
                measured[stage.kind] = Measured(store.count(stage.kind), monotonic() - started)
    table = Table(title="work, and time by a sample", box=SIMPLE_HEAD, title_justify="left")
    for column in ("", "units", "measured", "estimate"):
        table.add_column(column, justify="left" if not column else "right")
    total = 0.0
    for stage in stages:
        found, units = measured[stage.kind], len(stage.units)
        total += found.estimate(units)
        said = f"{found.units} in {found.seconds:.1f} s"
        table.add_row(stage.kind, f"{units:,}", said, span(found.estimate(units)))
    table.add_row("together", "", "", span(total))
    console.print(table)
    devices = {parameter.device for module in modules.values() for parameter in module.parameters()}
    console.print(f"memory: {memory_used(next(iter(devices), torch.device('cpu')))}", highlight=False, soft_wrap=True)
    console.print(
        "nothing was kept. Longer prompts, other batch sizes and a busy machine move these times.", soft_wrap=True
    )


def _parts(modules: Mapping[str, nn.Module]) -> Table:
    table = Table(title="what is loaded, and fits together", box=SIMPLE_HEAD, title_justify="left")
    for column in ("part", "class", "parameters", "precision", "MiB"):
        table.add_column(column, justify="right" if column in ("parameters", "MiB") else "left")
    for name, module in modules.items():
        tensors = list(module.parameters())
        table.add_row(
            escape(name),
            type(module).__name__,
            f"{sum(t.numel() for t in tensors) / 1e6:.1f} M",
            ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors})),
            f"{sum(t.numel() * t.element_size() for t in tensors) / MIB:.0f}",
        )
    return table


def memory_used(device: torch.device) -> str:
    """How much this process has used at most, and how much there is, in words."""
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        return (
            f"{torch.cuda.max_memory_allocated(device) / MIB:,.0f} MiB at most were used on {device} "
            f"({whole / MIB:,.0f} MiB, {free / MIB:,.0f} free now), at the sample's size of a batch"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MIB
    return (
        f"{peak:,.0f} MiB at most were used by this process, at the sample's size of a batch, "
        f"of {whole:,.0f} MiB that this machine has"
    )


def span(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
