"""Stable Diffusion XL with text encoders of your choice, each of the two swappable alone."""

from __future__ import annotations

from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

from leaf_diffusion.diffusion.pipeline import LeafPipeline, defended


class LeafStableDiffusionXLPipeline(LeafPipeline, StableDiffusionXLPipeline):
    """`StableDiffusionXLPipeline` that takes robust text encoders by name and can attack its own prompts.

    Images are those of the stock pipeline with the same components; saved, it *is* a stock pipeline. A defence is not
    part of a saved pipeline: name it again when loading.
    """

    encode_prompt = defended(StableDiffusionXLPipeline.encode_prompt)
