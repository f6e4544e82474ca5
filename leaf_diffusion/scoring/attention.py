"""Who attends to what in a forest: chunks of nodes, each with the keys that its nodes may read and one mask.

Nodes stand in the rows' order, so that a node's descendants follow it: node `a` may read the key `b` where
`b <= a < stop`, `stop` being the first node behind b's descendants.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from leaf_diffusion.scoring.forest import Ints

ALIGNED = 16
"""The number of a chunk's keys is a multiple of this: a CPU's vectors hold 16 numbers (others take twice the time), and a
GPU's kernels want masks in multiples of 16 bytes."""
MOST_CHUNKS = 60_000
"""Chunks in one call of an attention kernel (a CUDA grid has at most 65,535 blocks along the batch)."""


def chunk_size(device: torch.device) -> int:
    """Nodes of a chunk: with fewer, more keys are gathered for each; with more, more products are masked away."""
    return 32 if device.type == "cpu" else 64


def mask(keys: Tensor, stops: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
    """What is added to the products of queries and keys, [chunks, 1, chunk, keys]."""
    nodes = torch.arange(len(keys) * chunk, device=keys.device).view(-1, chunk, 1)
    reads = (keys[:, None] <= nodes) & (nodes < stops[:, None])
    return torch.zeros(reads.shape, dtype=dtype, device=keys.device).masked_fill_(~reads, -torch.inf)[:, None]


def attend(q: Tensor, kv: Tensor, masked: Tensor, heads: int) -> Tensor:
    """q [nodes, width] over the keys and values [chunks * keys, 2 * width] of their chunks."""
    chunks, _, chunk, keys = masked.shape
    k, v = kv.view(chunks, keys, 2, heads, -1).permute(2, 0, 3, 1, 4)
    q = q.view(chunks, chunk, heads, -1).transpose(1, 2)
    return scaled_dot_product_attention(q, k, v, attn_mask=masked).transpose(1, 2).reshape(chunks * chunk, -1)


def on_device(arrays: Sequence[Ints], device: torch.device) -> list[Tensor]:
    """Indices on the device, int64; on a GPU by one copy that nothing waits for."""
    if device.type != "cuda":
        return [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]
    ends = np.cumsum([array.size for array in arrays])
    sent = torch.empty(int(ends[-1]), dtype=torch.int32, pin_memory=True)  # a copy from other memory would wait
    filled = sent.numpy()
    for array, end in zip(arrays, ends, strict=True):
        filled[end - array.size : end] = array.reshape(-1)
    parts = sent.to(device, non_blocking=True).long().split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def forest_kernels(device: torch.device) -> AbstractContextManager[None]:
    """The kernels that a forest uses: cuDNN's attention plans anew for each shape, and each forest has its own."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
