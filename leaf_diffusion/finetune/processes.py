"""The accelerator of one training, which leaves no trace for the next one in the same Python process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState


class Settings(Protocol):
    """What of a recipe decides how an update is computed."""

    @property
    def mixed_precision(self) -> str: ...
    @property
    def accumulation(self) -> int: ...


@contextmanager
def accelerator_for(config: Settings, device: torch.device) -> Iterator[Accelerator]:
    """An accelerator with the precision and accumulation of `config`, on the CPU where `device` is one.

    accelerate keeps device and precision for the life of a process and refuses others ("restart your runtime"). What
    this call has set up is undone at its end; a caller's own accelerator stays, and settings that it cannot serve
    raise ValueError, as do precisions that the device lacks.
    """
    ours = not AcceleratorState._shared_state
    devices_ours = not PartialState._shared_state
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.accumulation,
            # buffers never change, and one may be larger than all that is trained
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        # accelerate runs fp16 on a CPU as float32, in silence
        if config.mixed_precision == "fp16" and accelerator.scaler is None:
            raise ValueError(f"mixed_precision=fp16 needs a GPU, the device is {accelerator.device}: use bf16 or no")
        yield accelerator
    finally:
        if ours:
            AcceleratorState._reset_state(reset_partial_state=devices_ours)
