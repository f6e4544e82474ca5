"""What `attacks.py --device cuda` runs: captions a second of each scorer on one device, and the engine's share of its rate."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from dataclasses import replace

import torch
from baselines import SENTENCES, clock, needed_operations, product_limit, tower
from cases import Case, counting, run
from rich.console import Console
from rich.table import Table

from leaf_diffusion.attacks import Charmer, LeafAttack
from leaf_diffusion.text import NoNewWords

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def cases(captions: int) -> list[tuple[Case, int, int]]:
    """(case of the engine, captions of the published baseline, captions of the plain one)."""
    charmer = Charmer(n_positions=20, batch_prompts=32)
    return [
        (Case("Charmer n=20, k=2, constrained", charmer, captions, NoNewWords(), k=2), 2, 8),
        (Case("Charmer n=20, k=1", charmer, captions), 2, 8),
        (
            Case(f"LEAF rho=50, batch {captions}", LeafAttack(rho=50), captions, None, "published-training"),
            captions,
            captions,
        ),
    ]


def measure(
    shape: str,
    device: torch.device,
    dtype: str,
    captions: int,
    turns: int,
    chosen: list[int] | None,
    profile: bool = False,
) -> None:
    """Print one table: every side of every case, in turns; the fastest turn of each side counts."""
    encoder, sentences = tower(shape, DTYPES[dtype], device), SENTENCES["many"][:captions]
    if len(sentences) < captions:
        raise ValueError(f"there are {len(sentences)} captions, {captions} were asked for: give fewer with --captions")
    width = encoder.config.hidden_size
    table = Table(title=f"{shape} on {name(device)}, tower in {dtype}; TF32 {torch.backends.cuda.matmul.allow_tf32}")
    for column in (
        "attack",
        "side",
        "captions",
        "seconds",
        "captions/s",
        "of published",
        "peak MiB",
        "of the product rate",
    ):
        table.add_column(column)
    limits = {each: product_limit(width, DTYPES[each], device=device) for each in dict.fromkeys((dtype, "bf16"))}
    for case, few, some in [cases(captions)[i] for i in chosen or range(3)]:
        sides = [("published", replace(case, sentences=few), case.published, "fp32"),
                 ("plain", replace(case, sentences=some), "plain", "fp32"), ("prefix", case, "prefix", "fp32")]  # fmt: skip
        if dtype == "fp32":
            sides.append(("screened", case, "prefix", "screen"))
        for _, mine, engine, precision in sides:  # memo and kernels warm for everybody
            run(mine, encoder, sentences, engine, precision)
        with counting() as counted:
            run(case, encoder, sentences, "prefix")
        needed = needed_operations(encoder, counted.nodes, counted.rows, counted.keys)
        best: dict[str, float] = {}
        peaks: dict[str, float] = {}
        for _ in range(max(1, turns)):
            for side, mine, engine, precision in sides:
                before = clear(device)
                taken = run(mine, encoder, sentences, engine, precision)
                best[side] = min(taken, best.get(side, taken))
                peaks[side] = (peak(device) - before) / 2**20
        baseline = few / best["published"]
        for side, mine, _, precision in sides:
            rate = "bf16" if precision == "screen" else dtype
            share = f"{needed / best[side] / limits[rate]:.1%} of {rate}" if side in ("prefix", "screened") else ""
            speed = mine.sentences / best[side]
            table.add_row(
                case.name, side, str(mine.sentences), f"{best[side]:.3f}", f"{speed:.2f}", f"{speed / baseline:.1f}x",
                f"{peaks[side]:.0f}", share,
            )  # fmt: skip
        if profile:
            where_time_goes(lambda case=case: run(case, encoder, sentences, "prefix"), device)
    console = Console(width=150)
    console.print(table)
    console.print("product rate, TFLOP/s: " + ", ".join(f"{each} {rate / 1e12:.1f}" for each, rate in limits.items()))


def where_time_goes(work: Callable[[], object], device: torch.device) -> None:
    """Print how long the device computed, and the functions in which Python spent most of its own time."""
    if device.type == "cuda":
        kinds = torch.profiler.ProfilerActivity
        begun = clock(device)
        with torch.profiler.profile(activities=[kinds.CUDA]) as recorded:
            work()
            taken = clock(device) - begun
        kernels = sorted(recorded.key_averages(), key=lambda each: -each.self_device_time_total)
        busy = sum(each.self_device_time_total for each in kernels) / 1e6
        print(f"the device computed for {busy:.3f} s of {taken:.3f} s; its kernels, by time:")
        for each in kernels[:14]:
            print(f"  {each.self_device_time_total / 1e6:.4f} s, {each.count} times: {each.key[:110]}")
    profiler = cProfile.Profile()
    profiler.enable()
    work()
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(22)


def name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def clear(device: torch.device) -> int:
    """Bytes in use now; the peak is counted anew."""
    if device.type != "cuda":
        return 0
    clock(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
