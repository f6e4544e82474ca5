"""The output folder: whose training it holds, its checkpoint (one safetensors file), its log."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from leaf_diffusion.runs.files import atomic_write, explained

STATE, LOG = "finetune.json", "training_log.jsonl"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def read_state(output: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """What the folder says of its training, None for a fresh folder; ValueError where it holds something else."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: choose a folder for the finetuned encoder")
    path = output / STATE
    if not path.exists():
        if any((output / name).exists() for name in ("config.json", "adapter_config.json")):
            raise ValueError(f"{output} holds a model, which would be overwritten: choose another folder")
        return None
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    there = state["identity"]
    if differing := sorted(name for name in there.keys() | identity.keys() if there.get(name) != identity.get(name)):
        what = "; ".join(f"{name}: {there.get(name)!r} there, {identity.get(name)!r} now" for name in differing)
        raise ValueError(
            f"{output} holds a training with other settings ({what}): choose another folder or delete that one"
        )
    return state


def write_state(output: Path, identity: dict[str, Any], **more: Any) -> None:
    """Write whose training this is, and how far. Raises RunFolderError."""
    atomic_write(output / STATE, (json.dumps({"identity": identity} | more, indent=2, sort_keys=True) + "\n").encode())


class Checkpoint:
    """Weights, AdamW moments and a few numbers in one safetensors file, which is replaced whole.

    Nothing else is needed to go on: the order of captions, the attack's randomness and the learning rate follow from
    the step.
    """

    def __init__(self, output: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        self.path = output / "checkpoint" / "state.safetensors"
        self.module, self.optimiser = module, optimiser

    def save(self, step: int, numbers: dict[str, Any]) -> None:
        """Write the state after `step` updates. Raises RunFolderError."""
        tensors: dict[str, Tensor] = {f"weights.{name}": value for name, value in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            moments = self.optimiser.state[parameter]
            tensors |= {f"{moment}.{name}": moments[moment] for moment in MOMENTS if moment in moments}
        stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with explained(self.path, "writing"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".partial")
            save_file(stored, partial, metadata={"step": str(step), "numbers": json.dumps(numbers)})
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(self.path)

    def load(self) -> tuple[int, dict[str, Any]]:
        """Put the stored state into module and optimiser; (updates done, numbers), (0, {}) where nothing is stored."""
        if not self.path.exists():
            return 0, {}
        with safe_open(self.path, framework="pt") as file:
            metadata, there = file.metadata(), set(file.keys())
            self.module.load_state_dict({name: file.get_tensor(f"weights.{name}") for name in self.module.state_dict()})
            for name, parameter in self.module.named_parameters():
                keys = {moment: f"{moment}.{name}" for moment in MOMENTS if f"{moment}.{name}" in there}
                moments = {moment: file.get_tensor(key).to(parameter.device) for moment, key in keys.items()}
                if moments:
                    self.optimiser.state[parameter] = moments
        return int(metadata["step"]), json.loads(metadata["numbers"])

    def remove(self) -> None:
        """Delete it: the finished encoder is saved."""
        for path in (self.path, self.path.with_suffix(".partial")):
            path.unlink(missing_ok=True)
        if self.path.parent.is_dir():
            self.path.parent.rmdir()


def cut_log(output: Path, step: int) -> None:
    """Drop the log's rows behind `step` (they are about to be made again) and a torn last one."""
    path = output / LOG
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = (line for line in lines if line.endswith(b"\n"))
    atomic_write(path, b"".join(line for line in whole if step and json.loads(line)["step"] <= step))


def append_log(output: Path, row: dict[str, Any]) -> None:
    """Add one row. Raises RunFolderError."""
    with explained(output / LOG, "writing"), (output / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
