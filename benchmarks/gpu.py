"""What a GPU does: captions a second of attacks and of training, ours against the published algorithm, and the host's share.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --shape host --captions 4 --turns 1
    python benchmarks/gpu.py --device cpu --shape host --simulate 450 --cases

The first is the measurement: ViT-L/14's shape in bfloat16 on a CUDA device; the goal is 30 times the published algorithm. Sides
differ too much to attack equally many captions: each says how many. "host" is the share of the time in which the device
computes nothing. Then updates of TextFARE (LEAF rho 50, no new words), their candidates made by 0, 1, 2 and 4 workers.

The second tries the script where there is no GPU. The third simulates one for the updates: this machine makes the
candidates, and scores are there when a device of so many TFLOP/s would have computed them at ViT-L/14's shape.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from time import perf_counter, sleep
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from baselines import SENTENCES, SHAPES, clock, needed_operations, product_limit, tower
from cases import Case, Counted, counting, run
from rich.console import Console
from rich.table import Table

from leaf_diffusion.attacks import Charmer, LeafAttack
from leaf_diffusion.encoders import HFTextEncoder
from leaf_diffusion.finetune.anchors import attack_captions, bucketed, embed, textfare_loss
from leaf_diffusion.finetune.loop import new_optimiser
from leaf_diffusion.finetune.tower import trainable_copy
from leaf_diffusion.finetune.workers import AttackWorkers
from leaf_diffusion.scoring import plain, prefix, prefix_forest
from leaf_diffusion.text import NoNewWords

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WORKERS = (0, 1, 2, 4)


def cases(captions: int) -> list[tuple[Case, int, int]]:
    """(case of the engine, captions of the published baseline, captions of the plain one)."""
    charmer, few = Charmer(n_positions=20, batch_prompts=32), min(2, captions)
    leaf = Case(f"LEAF rho=50, batch {captions}", LeafAttack(rho=50), captions, None, "published-training")
    return [
        (Case("Charmer n=20, k=2, constrained", charmer, captions, NoNewWords(), k=2), few, min(8, captions)),
        (Case("Charmer n=20, k=1", charmer, captions), few, min(8, captions)),
        (leaf, captions, captions),
    ]


def attacks(encoder: HFTextEncoder, dtype: str, captions: int, turns: int, chosen: list[int], profile: bool) -> Table:
    """Every side of every case, in turns; the fastest turn of each side counts."""
    device, sentences = encoder.device, SENTENCES["many"]
    table = Table(
        "attack", "side", "captions", "seconds", "captions/s", "of published", "host", "peak MiB", "of the rate"
    )
    limits = {each: product_limit(encoder.config.hidden_size, DTYPES[each], device=device) for each in {dtype, "bf16"}}
    table.title = "attacks; product rate, TFLOP/s: " + ", ".join(f"{k} {v / 1e12:.1f}" for k, v in limits.items())
    for case, few, some in [cases(captions)[i] for i in chosen]:
        sides = [("published", replace(case, sentences=few), case.published, "fp32"),
                 ("plain", replace(case, sentences=some), "plain", "fp32"), ("prefix", case, "prefix", "fp32")]  # fmt: skip
        if dtype == "fp32":
            sides.append(("screened", case, "prefix", "screen"))
        for _, mine, engine, precision in sides:  # memo and kernels warm for everybody
            run(mine, encoder, sentences, engine, precision)
        with counting() as counted:
            run(case, encoder, sentences, "prefix")
        needed = needed_operations(encoder, counted.nodes, counted.rows, counted.keys)
        best, peaks = dict[str, float](), dict[str, float]()
        for _ in range(max(1, turns)):
            for side, mine, engine, precision in sides:
                before = clear(device)
                taken = run(mine, encoder, sentences, engine, precision)
                best[side] = min(taken, best.get(side, taken))
                peaks[side] = (peak(device) - before) / 2**20
        for side, mine, engine, precision in sides:
            rate = "bf16" if precision == "screen" else dtype
            ours = engine == "prefix"
            speed, baseline = mine.sentences / best[side], few / best["published"]
            idle = host_share(lambda m=mine, e=engine, p=precision: run(m, encoder, sentences, e, p), device)
            table.add_row(
                case.name, side, str(mine.sentences), f"{best[side]:.3f}", f"{speed:.2f}", f"{speed / baseline:.1f}x",
                f"{idle:.0%}" if ours else "", f"{peaks[side]:.0f}",
                f"{needed / best[side] / limits[rate]:.1%} of {rate}" if ours else "",
            )  # fmt: skip
        if profile:
            profiler = cProfile.Profile()
            profiler.runcall(run, case, encoder, sentences, "prefix")
            pstats.Stats(profiler).sort_stats("tottime").print_stats(22)
    return table


def host_share(work: Callable[[], object], device: torch.device) -> float:
    """The share of the time in which the device computes nothing; on a CPU, that which the tower does not take."""
    if device.type == "cuda":
        begun = clock(device)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
            work()
            taken = clock(device) - begun
        return 1 - sum(each.self_device_time_total for each in recorded.key_averages()) / 1e6 / taken
    busy, features, build = [0.0], prefix_forest.PrefixForest._features, prefix_forest.build_forest

    def timed(function: Callable[..., Any], sign: int) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            begun = clock(device)
            found = function(*given)
            busy[0] += sign * (clock(device) - begun)
            return found

        return call

    with (
        patch.object(prefix_forest.PrefixForest, "_features", timed(features, 1)),
        patch.object(prefix_forest, "build_forest", timed(build, -1)),
    ):
        begun = clock(device)
        work()
        return 1 - busy[0] / (clock(device) - begun)


def updates(encoder: HFTextEncoder, captions: int, workers: int, steps: int, learns: bool) -> float:
    """Captions a second of that many updates, after one that warms up."""
    device = encoder.device
    trained = HFTextEncoder(trainable_copy(encoder).float(), encoder.tokenizer, name="trained")
    optimiser, attack, rule = (
        new_optimiser(trained.module, lr=1e-6, weight_decay=1e-4),
        LeafAttack(rho=50),
        NoNewWords(),
    )
    sentences = SENTENCES["many"]

    def batch(number: int) -> tuple[list[str], int]:
        return [sentences[(number + i) % len(sentences)] for i in range(captions)], number

    pool = AttackWorkers(workers, attack, trained, batch, steps + 1, k=1, constraint=rule) if workers else None
    clean, begun = embed(encoder, list(sentences)), 0.0
    for number in range(steps + 1):
        if number == 1:
            begun = wall(device)
        texts, seed = batch(number)
        targets = clean[(torch.arange(captions) + number) % len(sentences)].float()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            attacked = attack_captions(
                attack, trained, texts, targets, k=1, constraint=rule, seed=seed, search=pool and partial(pool, number)
            )
            if learns:
                loss = textfare_loss(bucketed(trained.features, trained.tokenize(attacked)), targets)
        if learns:
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    return captions * steps / (wall(device) - begun)


def wall(device: torch.device) -> float:
    clock(device)
    return perf_counter()


@contextmanager
def simulated(rate: float) -> Iterator[None]:
    """Forests are built, and their features, which are made up, are there when a device of so many operations a second
    would have computed them at ViT-L/14's shape, while the host goes on."""
    ready, shape = [0.0], SimpleNamespace(config=SimpleNamespace(**SHAPES["vit-l"]))
    mixed, start = np.random.default_rng(0).normal(size=(77, 8)), prefix.PrefixScore._start

    def features(self: Any, rows: Any, feature: Any, chunk: int) -> torch.Tensor:
        counted = Counted()
        counted(rows, chunk, prefix_forest.ALIGNED, self._filled)
        needed = needed_operations(shape, counted.nodes, counted.rows, counted.keys)  # type: ignore[arg-type]
        ready[0] = max(ready[0], perf_counter()) + needed / rate
        return torch.from_numpy(np.sin(rows.rows.tokens @ mixed[: rows.rows.tokens.shape[1]])).float()

    def started(*given: Any) -> Any:
        fetch = start(*given)

        def fetched() -> torch.Tensor:
            sleep(max(0.0, ready[0] - perf_counter()))
            return fetch()

        return fetched

    with (
        patch.object(prefix_forest.PrefixForest, "_features", features),
        patch.object(prefix.PrefixScore, "_start", started),
        patch.object(prefix_forest, "few_launches", lambda device: True),
        patch.object(plain, "CPU_TOKENS", plain.GPU_TOKENS),
    ):
        yield


def clear(device: torch.device) -> int:
    """Bytes in use now; the peak is counted anew."""
    if device.type != "cuda":
        return 0
    clock(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=list(SHAPES), default="vit-l")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--captions", type=int, default=96, help=f"at most {len(SENTENCES['many'])}")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cases", nargs="*", type=int, default=range(3), help="attacks, of 0 to 2; default: all")
    parser.add_argument("--workers", nargs="*", type=int, default=WORKERS)
    parser.add_argument("--steps", type=int, default=10, help="updates of each number of workers")
    parser.add_argument("--simulate", type=float, metavar="TFLOPS", help="updates whose scores a device would compute")
    parser.add_argument("--profile", action="store_true", help="also where the host's time goes")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is here: --device cpu --shape host tries the script without one")
    if not 1 <= options.captions <= len(SENTENCES["many"]):
        parser.error(f"--captions is 1 to {len(SENTENCES['many'])}")
    torch.set_num_threads(1)
    dtype = options.dtype or ("bf16" if device.type == "cuda" else "fp32")
    encoder, console = tower(options.shape, DTYPES[dtype], device), Console(width=150)
    console.print(f"{options.shape}, {dtype}, {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}")
    if len(options.cases):
        chosen = list(options.cases)
        console.print(attacks(encoder, dtype, options.captions, options.turns, chosen, options.profile))
    table = Table("workers", "captions/s", "of none", title=f"updates of TextFARE, batch {options.captions}")
    if options.simulate:
        table.title = (
            f"attacks of updates, batch {options.captions}, a device of {options.simulate:g} TFLOP/s simulated"
        )
    best = dict.fromkeys(options.workers, 0.0)
    with simulated(options.simulate * 1e12) if options.simulate else nullcontext():
        for _ in range(max(1, options.turns)):
            for n in best:
                best[n] = max(best[n], updates(encoder, options.captions, n, options.steps, not options.simulate))
    for n, speed in best.items():
        table.add_row(str(n), f"{speed:.1f}", f"{speed / best[options.workers[0]]:.2f}x")
    if best:
        console.print(table)


if __name__ == "__main__":
    main()
