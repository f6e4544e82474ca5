"""The reader of safetensors files: what a file holds, and its tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from leaf_diffusion.weights.pickles import refuse_pickle

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Types of weights as safetensors spells them; of whole numbers a quantised model's are, which need their scales."""


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its type as safetensors spells it, its shape, and the bytes of the file that it fills."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds: tensors by name, metadata, and the header's own bytes."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    text: bytes


def read_header(file: Path) -> Header:
    """What a safetensors file holds. FileNotFoundError; ValueError for pickles and damaged files."""
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    refuse_pickle(file)
    try:
        with safe_open(file, framework="pt"):
            pass  # checks that the tensors fill the file without gap or overlap
    except Exception as error:  # safetensors' own has no base class but Exception
        raise ValueError(f"{file} is damaged, or no safetensors file ({error})") from error
    with open(file, "rb") as opened:
        text = opened.read(int.from_bytes(opened.read(8), "little"))
    content = json.loads(text)
    metadata = content.pop("__metadata__", {})
    start = 8 + len(text)
    entries = {
        key: Entry(value["dtype"], tuple(value["shape"]), *(start + offset for offset in value["data_offsets"]))
        for key, value in content.items()
    }
    return Header(entries, metadata, text)


def load_weights(file: Path, keys: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file (those of `keys`) on the CPU.

    Raises FileNotFoundError, and ValueError for pickles, damaged files and tensors with NaN or infinity.
    """
    names = read_header(file).entries if keys is None else keys
    with safe_open(file, framework="pt") as opened:
        found = {key: opened.get_tensor(key) for key in names}
    check_finite(file, found.items())
    return found


def check_finite(source: str | Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """ValueError that names the first tensor with NaN or infinity; tensors that are elsewhere (offloaded) pass."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.device.type != "meta" and not _finite(tensor.detach()):
            raise ValueError(f"{source}: the tensor {name!r} holds NaN or infinity")


def _finite(tensor: Tensor) -> bool:
    # 8-bit floats have no isfinite of their own
    return bool(torch.isfinite(tensor.half() if tensor.dtype.itemsize == 1 else tensor).all())
