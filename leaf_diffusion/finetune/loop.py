"""Finetuning: one loop, from top to bottom, for text towers, image towers and both.

A `Task` says what is trained, how an example is attacked, and what is learnt from it. Several processes, each of which
attacks its own share of an update, give the same encoder: `accelerate launch -m leaf_diffusion.cli.finetune --source ...`,
or the same with `torchrun --nproc-per-node N`.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import ClassVar, Generic, TypeVar

import torch
from accelerate import Accelerator
from pydantic import JsonValue
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from leaf_diffusion.finetune.captions import batch_indices
from leaf_diffusion.finetune.card import Card, Figures, model_card
from leaf_diffusion.finetune.checkpoint import (
    Checkpoint,
    Row,
    Training,
    append_log,
    cut_log,
    locked,
    read_state,
    write_state,
)
from leaf_diffusion.finetune.config import TrainingConfig
from leaf_diffusion.finetune.floor import CleanFloor
from leaf_diffusion.finetune.processes import accelerator_for

LOG_EVERY, HELD_OUT = 10, 256
TABLES = {"token_embedding", "embed_tokens", "shared", "word_embeddings"}
"""What token tables are called in CLIPs, in language models, in T5 and in BERT."""
OnLog = Callable[[Row], None]
Batch = TypeVar("Batch")
"""An attacked batch, as the task makes it."""
_COLUMNS = (
    TextColumn("finetuning, loss {task.fields[loss]}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
)


class Task(ABC, Generic[Batch]):
    """What one kind of finetuning adds to the loop; `examples` (captions, images, pairs) of them, `n`, are trained on."""

    examples: ClassVar[str]
    clean: ClassVar[str] = "accuracy_clean"
    """The figure that `clean_floor` is about."""
    remark: str = ""
    """What a user should know before the training starts."""
    accelerator: Accelerator
    tower: nn.Module
    """All that is trained, from `build` on."""

    def __init__(self, config: TrainingConfig, n: int, device: torch.device) -> None:
        self.config, self.n, self.device = config, n, device

    @abstractmethod
    def identity(self) -> dict[str, JsonValue]:
        """Hashes of originals and data: what, beside the settings, makes two trainings the same."""

    @abstractmethod
    def build(self, batches: int) -> nn.Module:
        """Make the tower, on the accelerator's device; the module whose forward pass is the training's, one an update.
        `batches`: how many each process will ask for."""

    @abstractmethod
    def attack(self, number: int, seed: int) -> Batch:
        """Batch `number` of this process, attacked on the tower as it is now."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor: ...

    @abstractmethod
    def measure(self, *, trained: bool) -> Figures:
        """Held-out figures of the tower, or of the original."""

    @abstractmethod
    def held_out(self) -> dict[str, int]:
        """How many examples are measured on (held_out), and counts that belong to them."""

    @abstractmethod
    def card(self) -> Card: ...

    @abstractmethod
    def save(self, card: str, output: Path) -> None:
        """Write the tower into the folder, each file whole."""

    def finish(self) -> None:
        """Make the tower what is saved, before it is measured for the last time."""

    def close(self) -> None:
        """End what works beside this process."""

    def to_store(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint has to hold for the task; all processes call this together."""
        return {}

    def resume(self, stored: dict[str, Tensor]) -> None:
        """Go on from a checkpoint's tensors; those that are the task's are taken out of `stored`."""

    def notes(self) -> Row:
        """What a row of the log tells beside the figures."""
        return {}

    def seed(self, number: int) -> int:
        """The seed of batch `number`'s attack: that of its update."""
        return self.config.seed * 1_000_003 + number // self.config.accumulation

    def indices(self, number: int) -> list[int]:
        """The examples of batch `number` of this process."""
        fresh, rank, processes = self.config.fresh, self.accelerator.process_index, self.accelerator.num_processes
        return batch_indices(self.n, (number * processes + rank) * fresh, fresh, self.config.seed)


def train(task: Task[Batch], output: Path, on_log: OnLog | None = None) -> Path:
    """Train and save in `output`, which is returned; `on_log` gets each row of the log. The same call continues where it
    was broken off, and returns at once when it had finished.

    Raises ValueError for settings or a folder that cannot serve, before the training starts, and where the loss is no
    finite number any more; RunFolderError for a folder that another training is writing or that cannot be written.
    """
    # gradients, whatever the caller has switched off
    with torch.inference_mode(False), torch.enable_grad(), accelerator_for(task.config, task.device, output) as ours:
        processes, main = ours.num_processes, ours.is_main_process
        config, steps = task.config.resolved(task.n, processes)
        per_update = config.batch_size * config.accumulation * processes
        identity = config.identity() | task.identity() | {"steps": steps, "per_update": per_update}
        state = read_state(output, identity)  # refused before anything is made
        if state is not None and state.finished:
            return output
        with locked(output) if main else nullcontext():
            _loop(task, ours, config, steps, per_update, identity, output, on_log)
    return output


def _loop(
    task: Task[Batch],
    accelerator: Accelerator,
    config: TrainingConfig,
    steps: int,
    per_update: int,
    identity: dict[str, JsonValue],
    output: Path,
    on_log: OnLog | None,
) -> None:
    rank, processes, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    accelerator.wait_for_everyone()  # the folder is this training's
    state = read_state(output, identity)
    task.accelerator = accelerator
    module = task.build(steps * config.accumulation)
    tower = task.tower
    model, optimiser = accelerator.prepare(module, new_optimiser(tower, config.lr, config.weight_decay))
    rate = config.rates(optimiser.optimizer, steps)
    checkpoint, floor = Checkpoint(output, tower, optimiser.optimizer), CleanFloor(config.clean_floor, tower)
    step, numbers, kept = checkpoint.load()
    task.resume(kept)
    floor.resume(numbers.floor, kept)
    if accelerator.scaler is not None and numbers.scaler is not None:
        accelerator.scaler.load_state_dict(numbers.scaler)
    accelerator.wait_for_everyone()  # everybody has read the folder: now it may be written to
    accelerator.init_trackers(
        "leaf_diffusion",
        {key: str(value) for key, value in asdict(config).items()},
        {"wandb": {"name": output.name, "dir": str(output)}},
    )

    def log(row: Row) -> None:
        append_log(output, row)
        accelerator.log({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))
        if task.clean in row:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
            progress.console.print(f"step {row['step']}: {figures}", highlight=False)
        if on_log is not None:
            on_log(row)

    with Progress(*_COLUMNS, disable=not main) as progress:
        bar = progress.add_task("", total=steps, completed=step, loss="-")
        before: Figures = {}
        if main:
            scaled = task.config.warmup_steps is None and config.warmup_steps != config.PAPER_WARMUP
            warmup = f"{config.warmup_steps} of {steps} updates warm up (the paper's recipe: {config.PAPER_WARMUP})"
            for remark in filter(None, (task.remark, warmup if scaled else "")):
                progress.console.print(remark, highlight=False, soft_wrap=True)
            before = state.before if state is not None else task.measure(trained=False)
            write_state(output, Training(identity=identity, before=before, finished=False))
            cut_log(output, step)
            if step == 0:
                log({"step": 0, **before})
        while step < steps and not floor.stopped:
            started, losses = monotonic(), list[Tensor]()
            seed = task.seed(step * config.accumulation)
            torch.manual_seed(seed * processes + rank)  # for towers with dropout
            for group in optimiser.param_groups:
                group["lr"] = rate(step)
            for part in range(config.accumulation):
                tower.eval()
                batch = task.attack(step * config.accumulation + part, seed)
                tower.train()
                with accelerator.accumulate(model):
                    loss = task.loss(model, batch)
                    accelerator.backward(loss)
                    optimiser.step()
                    optimiser.zero_grad()
                losses.append(loss.detach())
            mean = float(accelerator.reduce(torch.stack(losses).mean(), "mean"))
            if not math.isfinite(mean):
                raise ValueError(f"step {step + 1}: the loss is {mean}; lower lr={config.lr:g}, or train in float32")
            step += 1
            progress.update(bar, completed=step, loss=f"{mean:.4f}")
            measured = step % config.eval_every == 0 or step == steps
            if main:
                row: Row = {"step": step, "loss": mean, "lr": rate(step - 1)}
                row[f"{task.examples}_per_second"] = round(per_update / (monotonic() - started), 2)
                if measured:
                    tower.eval()
                    row |= task.measure(trained=True)
                    floor.measured(step, row[task.clean])
                    row |= floor.stop.model_dump() if floor.stop is not None else {}
                if step % LOG_EVERY == 0 or measured:
                    log(row | task.notes())
            if measured:
                floor.agree(accelerator)
            if step % config.checkpoint_every == 0 or step == steps or floor.stopped:
                stored = task.to_store()
                if main:
                    numbers.floor, kept = floor.to_store()
                    numbers.scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
                    checkpoint.save(step, numbers, kept | stored)

        if main:
            if floor.stopped:
                progress.console.print(str(floor), highlight=False)
            floor.restore()
            tower.eval()
            task.close()
            task.finish()
            after = task.measure(trained=True)
            counts = {"steps": floor.kept_step if floor.stopped else steps, "per_update": per_update}
            counts |= {task.examples: task.n} | task.held_out()
            task.save(model_card(task.card(), config, before, after, counts, str(floor)), output)
            done = Training(identity=identity, before=before, after=after, counts=counts, finished=True)
            write_state(output, done.model_copy(update={"stopped": floor.stop}))
            checkpoint.remove()
    accelerator.wait_for_everyone()


def new_optimiser(tower: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW without decay on gains, biases (the paper's recipe) and the token table, spelling included.

    Decay on the table would move the embedding of every token that no caption holds, towards nothing.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in tower.named_parameters():
        if not parameter.requires_grad:
            continue
        (kept if parameter.ndim < 2 or TABLES & set(name.split(".")) else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def hashed(names: Iterable[str]) -> str:
    """What tells one set of captions or images from another."""
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
