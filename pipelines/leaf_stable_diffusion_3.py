"""Stable Diffusion 3 with CLIP text encoders of your choice, each of the two swappable alone; T5 is left as it is."""

from __future__ import annotations

from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

from leaf_diffusion.diffusion.pipeline import LeafPipeline, defended


class LeafStableDiffusion3Pipeline(LeafPipeline, StableDiffusion3Pipeline):
    """`StableDiffusion3Pipeline` that takes robust CLIP text encoders by name and can attack its own prompts.

    T5 (`text_encoder_3`) is neither exchanged nor attacked, and may hide what an attack does to the CLIPs: load the
    pipeline with `text_encoder_3=None, tokenizer_3=None` to see them alone. Saved, it *is* a stock pipeline.
    """

    encode_prompt = defended(StableDiffusion3Pipeline.encode_prompt)
