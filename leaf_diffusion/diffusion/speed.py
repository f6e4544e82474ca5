"""How a pipeline computes: its attention kernels, its memory layout, compiled or not. The images are the same but for
rounding."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any, Literal

import torch

from leaf_diffusion.diffusion.families import denoiser_of

Attention = Literal["sdpa", "xformers", "auto"]


def set_attention(pipeline: Any, attention: Attention = "sdpa") -> Literal["sdpa", "xformers"]:
    """Choose the attention kernels of a pipeline and return which are in use then.

    sdpa: PyTorch's own (the default of diffusers). xformers: memory-efficient attention; ValueError says why where it
    cannot run. auto: xformers where it runs, else sdpa with one warning. Parts that are shared with another pipeline
    change there, too.
    """
    if attention not in ("sdpa", "xformers", "auto"):
        raise ValueError(f"unknown attention {attention!r}; use sdpa, xformers or auto")
    if attention == "sdpa":
        if attention_of(pipeline) == "xformers":
            pipeline.disable_xformers_memory_efficient_attention()
        return "sdpa"
    reason = _enable_xformers(pipeline)
    if reason is None:
        return "xformers"
    if attention == "xformers":
        raise ValueError(f"attention xformers cannot run here: {reason}. Use sdpa, or auto to take what runs")
    warnings.warn(f"attention auto uses sdpa, as xformers cannot run here: {reason}", stacklevel=2)
    return "sdpa"


def attention_of(pipeline: Any) -> Literal["sdpa", "xformers"]:
    """Which kernels the denoiser uses."""
    processors = getattr(denoiser_of(pipeline), "attn_processors", {})  # Z-Image and Lumina have none to choose
    names = {type(processor).__name__ for processor in processors.values()}
    return "xformers" if any("XFormers" in name for name in names) else "sdpa"


def _enable_xformers(pipeline: Any) -> str | None:
    """Switch over; else why that is not possible, and nothing is changed."""
    if importlib.util.find_spec("xformers") is None:
        return "the package is not installed (pip install xformers)"
    if (device := denoiser_of(pipeline).device).type != "cuda":
        return f"its kernels need a CUDA device, and the pipeline is on {device}"
    try:
        pipeline.enable_xformers_memory_efficient_attention()
    except Exception as error:  # a build for another torch, CUDA or card fails in its own way
        pipeline.disable_xformers_memory_efficient_attention()
        return " ".join(str(error).split())[:300]
    if attention_of(pipeline) != "xformers":  # diffusers passes over what it has no such processor for
        return f"diffusers has no xformers kernels for {type(denoiser_of(pipeline)).__name__}"
    return None


def set_layout(pipeline: Any, *, channels_last: bool = False, compiled: bool = False) -> None:
    """Channels-last memory for the convolutions of UNet and VAE, and a denoiser compiled by torch.compile (in place, at its
    first call). ValueError where there are no convolutions to gain from."""
    denoiser = denoiser_of(pipeline)
    if channels_last:
        if not any(
            isinstance(module, torch.nn.Conv2d) and module.kernel_size != (1, 1) for module in denoiser.modules()
        ):
            raise ValueError(f"channels_last is for convolutions, and {type(denoiser).__name__} has none")
        for part in (denoiser, pipeline.vae):
            part.to(memory_format=torch.channels_last)
    if compiled:
        denoiser.compile()
