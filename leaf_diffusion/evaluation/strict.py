"""`--strict`: the same bits again, on the same kind of machine with the same versions, for the price of speed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def strict(on: bool) -> Iterator[None]:
    """Deterministic kernels, no TF32, one CPU thread; an operation that has no deterministic kernel raises
    RuntimeError. What was set before is set again at the end. Batches are the caller's part: one at a time."""
    if not on:
        yield
        return
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    try:
        _set(True, False, False, False, 1)
        yield
    finally:
        _set(*before)
        if workspace is None:
            del os.environ["CUBLAS_WORKSPACE_CONFIG"]


def _set(deterministic: bool, matmul_tf32: bool, cudnn_tf32: bool, benchmark: bool, threads: int) -> None:
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cuda.matmul.allow_tf32 = matmul_tf32
    torch.backends.cudnn.allow_tf32 = cudnn_tf32
    torch.backends.cudnn.benchmark = benchmark
    torch.set_num_threads(threads)
