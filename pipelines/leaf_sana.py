"""Sana with a Gemma-2 of your choice."""

from __future__ import annotations

from diffusers.pipelines.sana.pipeline_sana import SanaPipeline

from leaf_diffusion.diffusion.pipeline import LeafPipeline, defended


class LeafSanaPipeline(LeafPipeline, SanaPipeline):
    """`SanaPipeline` that takes a hardened Gemma-2 (`text_encoder`) by name and can attack its own prompts.

    The language model reads an instruction before the prompt, whose states are not given to the denoiser. Saved, it *is* a stock pipeline.
    """

    encode_prompt = defended(SanaPipeline.encode_prompt)
