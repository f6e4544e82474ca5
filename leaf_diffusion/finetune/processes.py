"""The accelerator of one training, which leaves no trace for the next one in the same Python process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration, is_tensorboard_available, is_wandb_available

from leaf_diffusion.finetune.config import TrainingConfig

AVAILABLE = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


def process_on(device: str) -> PartialState:
    """This process among those of its launcher, on "cpu", or on the GPU that is its own ("auto": where there is one)."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"unknown device {device!r}: auto, cpu or cuda; CUDA_VISIBLE_DEVICES chooses among several GPUs"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch sees no GPU here: --device cpu")
    return PartialState(cpu=device == "cpu")


@contextmanager
def accelerator_for(config: TrainingConfig, device: torch.device, output: Path) -> Iterator[Accelerator]:
    """An accelerator with the precision, accumulation and tracker of `config`, on the CPU where `device` is one.

    accelerate keeps device and precision for the life of a process and refuses others ("restart your runtime"). What
    this call has set up is undone at its end; a caller's own accelerator stays, and settings that it cannot serve
    raise ValueError, as do precisions that the device lacks; ModuleNotFoundError where the tracker is not installed,
    which accelerate passes over in silence.
    """
    if config.log_with is not None and not AVAILABLE[config.log_with]():
        raise ModuleNotFoundError(
            f'log_with={config.log_with} needs the package {config.log_with}: pip install "leaf-diffusion[track]"'
        )
    ours = not AcceleratorState._shared_state
    devices_ours = not PartialState._shared_state
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.accumulation,
            log_with=config.log_with,
            project_config=ProjectConfiguration(str(output), logging_dir=str(output)),
            # buffers never change, and one may be larger than all that is trained
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        # accelerate runs fp16 on a CPU as float32, in silence
        if config.mixed_precision == "fp16" and accelerator.scaler is None:
            raise ValueError(f"mixed_precision=fp16 needs a GPU, the device is {accelerator.device}: use bf16 or no")
        yield accelerator
        for tracker in accelerator.trackers:  # `end_training` would end the caller's process group, too
            tracker.finish()
    finally:
        if ours:
            AcceleratorState._reset_state(reset_partial_state=devices_ours)
