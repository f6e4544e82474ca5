"""Stable Diffusion with a text encoder of your choice: swap it in, attack it, save it as a stock pipeline."""

from __future__ import annotations

import functools
from typing import Any

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from leaf_diffusion.diffusion.pipeline import LeafPipeline, defended
from leaf_diffusion.encoders.base import TextEncoder


@functools.wraps(StableDiffusionPipeline.encode_prompt)
def _encode_prompt(self: StableDiffusionPipeline, **options: Any) -> Any:
    text_encoder = self.text_encoder
    if options.get("clip_skip") is None or hasattr(text_encoder, "text_model"):
        return StableDiffusionPipeline.encode_prompt(self, **options)
    # CLIPTextModel is flat since transformers 5.6; for clip_skip the stock method still asks for its text_model
    text_encoder.__dict__["text_model"] = text_encoder
    try:
        return StableDiffusionPipeline.encode_prompt(self, **options)
    finally:
        del text_encoder.__dict__["text_model"]


class LeafStableDiffusionPipeline(LeafPipeline, StableDiffusionPipeline):
    """`StableDiffusionPipeline` that takes a robust text encoder by name and can attack its own prompts.

    Images are those of the stock pipeline with the same components; saved, it *is* a stock pipeline
    (`StableDiffusionPipeline`, `DiffusionPipeline` and `AutoPipelineForText2Image` load it). A defence is not part of a
    saved pipeline, and neither is the encoder's text projection: name them again when loading.
    """

    encode_prompt = defended(_encode_prompt)

    @property
    def encoder(self) -> TextEncoder:
        """The pipeline's text encoder as it stands, with its defence and, where it is known, its projection.

        ValueError where the pipeline was loaded without one."""
        if not (encoders := self.encoders):
            raise ValueError("this pipeline has no text encoder (text_encoder=None)")
        return encoders[0]
