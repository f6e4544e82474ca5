"""Pickled weights are refused, with the command that converts them."""

from __future__ import annotations

import shlex
from pathlib import Path

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # torch.save since 1.6, and before
_CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    "s = torch.load(sys.argv[1], map_location='cpu', weights_only=True); s = s.get('state_dict', s); "
    "save_file({k: v.clone().contiguous() for k, v in s.items() if isinstance(v, torch.Tensor)}, sys.argv[2], "
    "{'format': 'pt'})"
)


def is_pickle(file: Path) -> bool:
    """Whether the name, or the first bytes, are those of pickled weights."""
    if file.suffix.lower() in SUFFIXES:
        return True
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        return opened.read(4).startswith((_ZIP, _PICKLE)) and file.suffix.lower() != ".safetensors"


def refuse_pickle(file: Path) -> None:
    """ValueError with the command that writes `file` as safetensors, where it is a pickle."""
    if is_pickle(file):
        raise ValueError(
            f"{file} is a pickle, which can run code when opened: only safetensors are loaded. Convert it: "
            f"{conversion(file, file.with_suffix('.safetensors'))}"
        )


def conversion(source: Path, target: Path) -> str:
    """The shell command that writes the tensors of a pickle as safetensors; nothing else of the pickle is run."""
    return f'python -c "{_CONVERT}" {shlex.quote(str(source))} {shlex.quote(str(target))}'
