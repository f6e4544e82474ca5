"""Stable Diffusion with a text encoder of your choice: swap it in, attack it, save it as a stock pipeline."""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from leaf_diffusion.diffusion.pipeline import LeafPipeline
from leaf_diffusion.encoders.clip import HFTextEncoder


class LeafStableDiffusionPipeline(LeafPipeline, StableDiffusionPipeline):
    """`StableDiffusionPipeline` that takes a robust text encoder by name and can attack its own prompts.

    Images are those of the stock pipeline with the same components; saved, it *is* a stock pipeline
    (`StableDiffusionPipeline`, `DiffusionPipeline` and `AutoPipelineForText2Image` load it). A defence is not part of a
    saved pipeline, and neither is the encoder's text projection: name them again when loading.
    """

    _stock: ClassVar[type] = StableDiffusionPipeline
    _towers: ClassVar[int] = 1

    @property
    def encoder(self) -> HFTextEncoder:
        """The pipeline's text encoder as it stands, with its defence and, where it is known, its projection."""
        return self.encoders[0]

    def encode_prompt(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        """As the stock method, after the defence. It sees prompts only: negative prompts are the user's own words."""
        prompt, text_encoder = self._defended(prompt), self.text_encoder
        if kwargs.get("clip_skip") is None or hasattr(text_encoder, "text_model"):
            return super().encode_prompt(prompt, *args, **kwargs)
        # CLIPTextModel is flat since transformers 5.6; for clip_skip the stock method still asks for its text_model
        text_encoder.__dict__["text_model"] = text_encoder
        try:
            return super().encode_prompt(prompt, *args, **kwargs)
        finally:
            del text_encoder.__dict__["text_model"]
