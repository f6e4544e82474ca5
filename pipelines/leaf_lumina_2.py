"""Lumina-Image 2.0 with a Gemma-2 of your choice."""

from __future__ import annotations

from diffusers.pipelines.lumina2.pipeline_lumina2 import Lumina2Pipeline

from leaf_diffusion.diffusion.pipeline import LeafPipeline, defended


class LeafLumina2Pipeline(LeafPipeline, Lumina2Pipeline):
    """`Lumina2Pipeline` that takes a hardened Gemma-2 (`text_encoder`) by name and can attack its own prompts.

    The denoiser is given the last but one hidden states, those of the system prompt among them. Saved, it *is* a stock pipeline.
    """

    encode_prompt = defended(Lumina2Pipeline.encode_prompt)
