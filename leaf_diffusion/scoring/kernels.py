"""Which attention kernels a forest may use."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def forest_kernels(device: torch.device) -> AbstractContextManager[None]:
    """cuDNN's attention plans anew for each shape, and here each forest has its own."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
