"""What a training will take: one update, measured and thrown away."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import TypeVar

import torch

from leaf_diffusion.finetune.loop import Task, new_optimiser
from leaf_diffusion.finetune.processes import accelerator_for

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Update:
    """One batch's seconds, of the attack and of what is learnt from it, and what the whole training is made of.

    `trained`, `parameters`: numbers of weights; `checkpoint`: bytes on disk.
    """

    attack: float
    learn: float
    batches: int
    steps: int
    trained: int
    parameters: int
    checkpoint: int

    @property
    def seconds(self) -> float:
        """Of all updates, without the held-out measurements."""
        return (self.attack + self.learn) * self.batches


def measured_update(task: Task[Batch]) -> Update:
    """Make the tower, attack and learn from a batch twice, and time the second one, as the first one warms up. Nothing is
    kept; other processes are not counted. Raises as `train`."""
    with (
        TemporaryDirectory(prefix="leaf-dry-run-") as folder,
        torch.inference_mode(False),
        torch.enable_grad(),
        accelerator_for(task.config, task.device, Path(folder)) as accelerator,
    ):
        config, steps = task.config.resolved(task.n, accelerator.num_processes)
        task.accelerator = accelerator
        module = task.build(steps * config.accumulation)
        tower = task.tower
        model, optimiser = accelerator.prepare(module, new_optimiser(tower, 0.0, 0.0))
        times = list[float]()
        for number in range(2):
            tower.eval()
            times = [_now(task.device)]
            batch = task.attack(number, task.seed(number))
            times.append(_now(task.device))
            tower.train()
            accelerator.backward(task.loss(model, batch))
            optimiser.step()
            optimiser.zero_grad()
            times.append(_now(task.device))
        task.close()
        trained = [each for each in tower.parameters() if each.requires_grad]
        return Update(
            attack=times[1] - times[0],
            learn=times[2] - times[1],
            batches=steps * config.accumulation,
            steps=steps,
            trained=sum(each.numel() for each in trained),
            parameters=sum(each.numel() for each in tower.parameters()),
            checkpoint=sum(3 * each.numel() * each.element_size() for each in trained),
        )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return monotonic()
