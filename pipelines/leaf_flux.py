"""FLUX.1 with text encoders of your choice, each of the two swappable alone."""

from __future__ import annotations

from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from leaf_diffusion.diffusion.pipeline import LeafPipeline, defended


class LeafFluxPipeline(LeafPipeline, FluxPipeline):
    """`FluxPipeline` that takes robust text encoders by name and can attack its own prompts.

    CLIP (`text_encoder`) gives the denoiser its pooled state alone, unprojected; the token states are those of T5
    (`text_encoder_2`), padding included. A robust CLIP protects a part of what FLUX reads, so `attack` moves both; with
    `encoders=["text_encoder"]` the CLIP alone. Saved, it *is* a stock pipeline.
    """

    # the call gives negative prompts to encode_prompt as prompts, and the defence leaves them alone
    __call__ = defended(FluxPipeline.__call__)
    encode_prompt = defended(FluxPipeline.encode_prompt)
