"""The one hasher of weights and of what belongs to them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def fingerprint(*parts: nn.Module | Iterable[tuple[str, Tensor]] | str) -> str:
    """sha256 hex over modules, named tensors (both by name, with type, shape and bytes) and texts, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
            continue
        named = part.state_dict().items() if isinstance(part, nn.Module) else part
        for name, tensor in sorted(named, key=lambda pair: pair[0]):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
