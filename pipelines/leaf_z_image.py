"""Z-Image with a Qwen3 of your choice."""

from __future__ import annotations

from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline

from leaf_diffusion.diffusion.pipeline import LeafPipeline, defended


class LeafZImagePipeline(LeafPipeline, ZImagePipeline):
    """`ZImagePipeline` that takes a hardened Qwen3 (`text_encoder`) by name and can attack its own prompts.

    The denoiser is given the last but one hidden states of a chat message. The stock class writes its template into a list of
    prompts that it is given; this one gives it a copy. Saved, it *is* a stock pipeline.
    """

    encode_prompt = defended(ZImagePipeline.encode_prompt)
