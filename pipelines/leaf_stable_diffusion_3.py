"""Stable Diffusion 3 with text encoders of your choice, each of the three swappable alone."""

from __future__ import annotations

from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

from leaf_diffusion.diffusion.pipeline import LeafPipeline, defended


class LeafStableDiffusion3Pipeline(LeafPipeline, StableDiffusion3Pipeline):
    """`StableDiffusion3Pipeline` that takes robust text encoders by name and can attack its own prompts.

    T5 (`text_encoder_3`) is exchanged and attacked as the CLIPs are, and may hide what an attack does to them: attack them by
    their names, or load the pipeline with `text_encoder_3=None, tokenizer_3=None` to see them alone. Saved, it *is* a stock pipeline.
    """

    encode_prompt = defended(StableDiffusion3Pipeline.encode_prompt)
