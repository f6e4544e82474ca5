"""FLUX.2 klein with a Qwen3 of your choice."""

from __future__ import annotations

from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline

from leaf_diffusion.diffusion.pipeline import LeafPipeline, defended


class LeafFlux2KleinPipeline(LeafPipeline, Flux2KleinPipeline):
    """`Flux2KleinPipeline` that takes a hardened Qwen3 (`text_encoder`) by name and can attack its own prompts.

    The denoiser is given the hidden states 9, 18 and 27 of a chat message side by side, padding included. Saved, it *is* a stock pipeline.
    """

    # the call gives negative prompts to encode_prompt as prompts, and the defence leaves them alone
    __call__ = defended(Flux2KleinPipeline.__call__)
    encode_prompt = defended(Flux2KleinPipeline.encode_prompt)
