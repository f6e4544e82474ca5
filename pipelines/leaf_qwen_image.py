"""Qwen-Image with a Qwen2.5-VL of your choice."""

from __future__ import annotations

from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline

from leaf_diffusion.diffusion.pipeline import LeafPipeline, defended


class LeafQwenImagePipeline(LeafPipeline, QwenImagePipeline):
    """`QwenImagePipeline` that takes a hardened Qwen2.5-VL (`text_encoder`) by name and can attack its own prompts.

    The denoiser is given the last hidden states of a chat message, without those of the 34 tokens before the prompt. Of the model
    the text side is attacked, which is all that a text-to-image pipeline asks. Saved, it *is* a stock pipeline.
    """

    # the call gives negative prompts to encode_prompt as prompts, and the defence leaves them alone
    __call__ = defended(QwenImagePipeline.__call__)
    encode_prompt = defended(QwenImagePipeline.encode_prompt)
