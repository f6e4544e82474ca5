"""Runs a job in forked children that are killed at random moments, then once to its end.

    python killed.py evaluate FOLDER --kills 20 --processes 2 -- [arguments of leaf-diffusion evaluate]
    python killed.py finetune FOLDER --kills 20

With `--no-end` the last run, to the end, is left out. The libraries are loaded once, before the forks, so that the moments
fall into the work. Prints how many children were killed before they had ended.
"""

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

import leaf_diffusion  # noqa: F401  # first: it repairs a torchvision without CUDA
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.eval import t2i_robustness
from leaf_diffusion.finetune import TextFAREConfig, finetune_text_encoder

torch.set_num_threads(1)


def evaluate(folder: Path, arguments: list[str], processes: int) -> None:
    shared = ["--share"] if processes > 1 else []
    status = t2i_robustness.main([*arguments, "--output", str(folder), *shared])
    if status:
        sys.exit(status)


def finetune(folder: Path) -> None:
    captions = [f"a {colour} {noun}" for colour in ("red", "blue", "green") for noun in ("cat", "boat", "key", "star")]
    config = TextFAREConfig(
        rho=4, batch_size=4, max_steps=24, warmup_steps=2, lr=1e-3, checkpoint_every=2, eval_every=6, seed=1
    )
    finetune_text_encoder(load_text_encoder("world:original"), captions, folder, config, held_out=captions[:4])


def child(job: Callable[[], None]) -> int:
    """Fork; the child does the job and ends."""
    pid = os.fork()
    if pid:
        return pid
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        job()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def written(folder: Path) -> int:
    """Records in the folder."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("records/*.jsonl"))


def moved_within(folder: Path, seconds: float) -> bool:
    """Wait so long, or until something more is recorded or stored."""

    def stored() -> tuple[int, int]:
        checkpoint = folder / "checkpoint" / "state.safetensors"
        with suppress(FileNotFoundError):
            return written(folder), checkpoint.stat().st_mtime_ns
        return written(folder), 0

    before, until = stored(), time.monotonic() + seconds
    while time.monotonic() < until:
        if stored() != before:
            return True
        time.sleep(0.01)
    return False


def ended(pid: int) -> bool:
    """Whether the child has ended by itself; an error of its own ends everything."""
    found, status = os.waitpid(pid, os.WNOHANG)
    if found and status:
        sys.exit(f"a child failed with status {status}")
    return bool(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=["evaluate", "finetune"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="of an uninterrupted run: moments lie in a slice of it"
    )
    parser.add_argument("--start", type=float, default=0.0, help="seconds in which a run only loads")
    parser.add_argument("--records", type=int, help="kill once so many records are there, instead of at random")
    parser.add_argument("--no-end", action="store_true")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end])

    def job() -> None:
        if options.job == "finetune":
            finetune(options.folder)
        else:
            evaluate(options.folder, words[end + 1 :], options.processes)

    rng, killed = random.Random(0), 0
    for _ in range(options.kills):
        children = [child(job) for _ in range(options.processes)]
        slice_ = 3 * max(options.seconds - options.start, 0.0) / options.kills
        if options.records is None:
            moment = options.start * rng.uniform(0.8, 1.0) + rng.uniform(0, slice_)
            if moved_within(options.folder, moment):  # however fast the machine is, no child does all of it
                time.sleep(rng.uniform(0, 0.1))
        while options.records is not None and written(options.folder) < options.records:
            time.sleep(0.02)
        # one of several is killed first, and the others work on for a moment
        for pid in rng.sample(children, len(children)):
            if not ended(pid):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                killed += 1
            time.sleep(rng.uniform(0, 0.3) if len(children) > 1 else 0)
    children = [] if options.no_end else [child(job) for _ in range(options.processes)]
    while children:
        children = [pid for pid in children if not ended(pid)]
        time.sleep(0.02)
    print(killed)


if __name__ == "__main__":
    main()
