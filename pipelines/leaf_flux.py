"""FLUX.1 with a CLIP text encoder of your choice; T5, which writes the token states, is left as it is."""

from __future__ import annotations

from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from leaf_diffusion.diffusion.pipeline import LeafPipeline, defended


class LeafFluxPipeline(LeafPipeline, FluxPipeline):
    """`FluxPipeline` that takes a robust CLIP text encoder (`text_encoder`) by name and can attack its own prompts.

    The denoiser is given CLIP's pooled state alone, unprojected, and that is what `attack` moves; the token states are those
    of T5 (`text_encoder_2`), which is neither exchanged nor attacked, so a robust CLIP protects a part of what FLUX reads.
    T5 is given as to the stock class: a module, or None to do without. Saved, it *is* a stock pipeline.
    """

    encode_prompt = defended(FluxPipeline.encode_prompt)
