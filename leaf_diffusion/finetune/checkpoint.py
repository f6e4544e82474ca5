"""The output folder: whose training it holds, its checkpoint (one safetensors file), its log.

accelerate's `save_state` would keep the optimiser, the scaler and the random states as pickles, write file by file in
place, and not notice a file that was changed; here nothing is pickled, a checkpoint is replaced whole, and its digest
is checked.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import BaseModel, JsonValue, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from leaf_diffusion.runs.claims import take_lock
from leaf_diffusion.runs.files import atomic_write, explained

STATE, LOG, LOCK = "finetune.json", "training_log.jsonl", ".lock"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
Row = dict[str, float]
"""A row of the log: step, loss, lr, examples per second and, where they were measured, the held-out figures."""


class Stop(BaseModel):
    """The measurement that was below the floor."""

    step: int
    accuracy_clean: float
    clean_floor: float
    kept_step: int
    """The last measurement that held it; 0: none."""


class Training(BaseModel):
    """What the folder says of its training."""

    identity: dict[str, JsonValue]
    before: dict[str, float]
    finished: bool
    after: dict[str, float] | None = None
    counts: dict[str, int] | None = None
    stopped: Stop | None = None


class Kept(BaseModel):
    """What the floor of clean accuracy keeps in a checkpoint."""

    kept_step: int
    stop: Stop | None = None


class Numbers(BaseModel):
    """What a checkpoint holds beside tensors."""

    scaler: dict[str, int | float] | None = None
    floor: Kept | None = None


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the folder, made where there is none, against other trainings. Raises RunFolderError where one holds it."""
    with explained(output, "writing into"):
        output.mkdir(parents=True, exist_ok=True)
    lock = take_lock(output / LOCK)
    try:
        yield
        (output / LOCK).unlink(missing_ok=True)  # finished: nobody will write here
    finally:
        os.close(lock)


def read_state(output: Path, identity: Mapping[str, JsonValue]) -> Training | None:
    """What the folder says of its training, None for a fresh folder; ValueError where it holds something else."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: choose a folder for the finetuned encoder")
    path = output / STATE
    if not path.exists():
        if any((output / name).exists() for name in ("config.json", "adapter_config.json")):
            raise ValueError(f"{output} holds a model, which would be overwritten: choose another folder")
        return None
    try:
        state = Training.model_validate(json.loads(path.read_text(encoding="utf-8")), strict=True)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {_briefly(error)}; delete {output} and start again") from error
    there = state.identity
    if differing := sorted(name for name in there.keys() | identity.keys() if there.get(name) != identity.get(name)):
        what = "; ".join(f"{name}: {there.get(name)!r} there, {identity.get(name)!r} now" for name in differing)
        raise ValueError(
            f"{output} holds a training with other settings ({what}): choose another folder or delete that one"
        )
    return state


def write_state(output: Path, state: Training) -> None:
    """Write whose training this is, and how far. Raises RunFolderError."""
    content = json.dumps(state.model_dump(exclude_none=True) | {"identity": state.identity}, indent=2, sort_keys=True)
    atomic_write(output / STATE, f"{content}\n".encode())


class Checkpoint:
    """Weights, AdamW moments, further tensors and a few numbers in one safetensors file, which is replaced whole.

    Nothing else is needed to go on: the order of the examples, the attack's randomness and the learning rate follow from
    the step.
    """

    def __init__(self, output: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        self.path = output / "checkpoint" / "state.safetensors"
        self.module, self.optimiser = module, optimiser

    def save(self, step: int, numbers: Numbers, kept: Mapping[str, Tensor]) -> None:
        """Write the state after `step` updates. Raises RunFolderError."""
        tensors = {f"weights.{name}": value for name, value in self._weights().items()}
        for name, parameter in self.module.named_parameters():
            moments = self.optimiser.state[parameter]
            tensors |= {f"{moment}.{name}": moments[moment] for moment in MOMENTS if moment in moments}
        tensors |= {f"kept.{name}": value for name, value in kept.items()}
        stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with explained(self.path, "writing"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._sweep()
            partial = self.path.with_suffix(".partial")
            metadata = {"step": str(step), "numbers": json.dumps(numbers.model_dump(exclude_none=True))}
            save_file(stored, partial, metadata=metadata | {"sha256": _digest(stored, metadata)})
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(self.path)

    def load(self) -> tuple[int, Numbers, dict[str, Tensor]]:
        """Put the stored state into module and optimiser; (updates done, numbers, kept tensors), of zero updates where
        nothing is stored. Raises ValueError for a damaged file, before anything is put anywhere."""
        if not self.path.exists():
            return 0, Numbers(), {}
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            if metadata.pop("sha256", None) != _digest(stored, metadata):
                raise ValueError("its content is not what was written")
            step, numbers = int(metadata["step"]), Numbers.model_validate(json.loads(metadata["numbers"]))
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{self.path} is damaged ({_briefly(error)}); delete it: the training starts again"
            ) from error
        with torch.no_grad():
            for name, value in self._weights().items():
                value.copy_(stored[f"weights.{name}"])
        for name, parameter in self.module.named_parameters():
            keys = {moment: f"{moment}.{name}" for moment in MOMENTS if f"{moment}.{name}" in stored}
            if moments := {moment: stored[key].to(parameter.device) for moment, key in keys.items()}:
                self.optimiser.state[parameter] = moments
        return step, numbers, {key[5:]: value for key, value in stored.items() if key.startswith("kept.")}

    def remove(self) -> None:
        """Delete it: the finished encoder is saved."""
        if self.path.parent.is_dir():
            self.path.unlink(missing_ok=True)
            self._sweep()
            self.path.parent.rmdir()

    def _weights(self) -> dict[str, Tensor]:
        """What a training changes: parameters, those that are tied once, without frozen ones (the base of a LoRA), and buffers."""
        names = {id(each): name for name, each in self.module.named_parameters() if each.requires_grad}
        state = self.module.state_dict(keep_vars=True)
        return {
            name: value
            for name, value in state.items()
            if names.get(id(value)) == name or not isinstance(value, nn.Parameter)
        }

    def _sweep(self) -> None:
        """Delete what killed writes left beside the checkpoint, safetensors' own temporary files too."""
        for path in self.path.parent.iterdir():
            if path != self.path:
                path.unlink()


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """sha256 over tensors on the CPU and metadata, names included."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _briefly(error: Exception) -> str:
    """What is wrong, on one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"


def cut_log(output: Path, step: int) -> None:
    """Drop the log's rows behind `step` (they are about to be made again) and a torn last one. ValueError for a damaged
    row."""
    path = output / LOG
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = list[bytes]()
    for number, line in enumerate(lines, 1):
        if not step or not line.endswith(b"\n"):
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("it names no step")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is damaged ({error}); delete that line") from error
        if row["step"] <= step:
            kept.append(line)
    atomic_write(path, b"".join(kept))


def append_log(output: Path, row: Row) -> None:
    """Add one row. Raises RunFolderError."""
    with explained(output / LOG, "writing"), (output / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
