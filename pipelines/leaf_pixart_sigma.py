"""PixArt-Sigma with a T5 of your choice."""

from __future__ import annotations

from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import PixArtSigmaPipeline

from leaf_diffusion.diffusion.pipeline import LeafPipeline, defended


class LeafPixArtSigmaPipeline(LeafPipeline, PixArtSigmaPipeline):
    """`PixArtSigmaPipeline` that takes a hardened T5 (`text_encoder`) by name and can attack its own prompts.

    The denoiser is given the token states of T5, at most 300, without the padding. Saved, it *is* a stock pipeline.
    """

    encode_prompt = defended(PixArtSigmaPipeline.encode_prompt)
