"""Tiny networks with random weights: CLIPs, their towers, and what a Stable Diffusion is made of besides."""

from __future__ import annotations

from typing import TypedDict, Unpack

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
)

from leaf_diffusion.encoders import HFTextEncoder, clip_tokenizer
from leaf_diffusion.encoders.base import Defence

TOKENIZER = clip_tokenizer()


class Changes(TypedDict, total=False):
    """What a test has otherwise, by the names of transformers' configurations."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    projection_dim: int
    hidden_act: str
    vocab_size: int
    max_position_embeddings: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    initializer_factor: float
    initializer_range: float


SIZES: Changes = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 8,
}  # fmt: skip
IDS: Changes = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
WIDER: Changes = {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 16}
"""Changes for a test that needs more room: what is trained, or attacked until an attack is better than another."""
VISION: Changes = {"hidden_size": 24, "image_size": 16, "patch_size": 8}
"""An image tower is wider than a text tower, so that neither is taken for the other."""
NEWER_VAE: dict[str, object] = {
    "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06, "scaling_factor": 1.5,
}  # fmt: skip
"""Changes for a VAE such as those of SD3 and FLUX."""


def text_config(**changes: Unpack[Changes]) -> CLIPTextConfig:
    return CLIPTextConfig(**SIZES | IDS | changes)


def tower(
    kind: type[PreTrainedModel] = CLIPTextModelWithProjection, seed: int = 0, **changes: Unpack[Changes]
) -> PreTrainedModel:
    """A text tower, with gradients."""
    torch.manual_seed(seed)
    return kind(text_config(**changes)).eval()


def encoder(
    seed: int = 0,
    *,
    kind: type[PreTrainedModel] = CLIPTextModelWithProjection,
    name: str = "tiny",
    defence: Defence | None = None,
    **changes: Unpack[Changes],
) -> HFTextEncoder:
    """A text tower with the real tokenizer."""
    return HFTextEncoder(tower(kind, seed, **changes), TOKENIZER, name=name, defence=defence)


def image_tower(seed: int = 0, **changes: Unpack[Changes]) -> CLIPVisionModelWithProjection:
    torch.manual_seed(seed)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZES | VISION | changes)).eval()


def clip(seed: int = 0, *, text: Changes = IDS, vision: Changes = VISION, projection_dim: int = 8) -> CLIPModel:
    """A whole CLIP: `text` and `vision` are what its halves have otherwise."""
    torch.manual_seed(seed)
    sizes = SIZES | {"projection_dim": projection_dim}
    halves = {"text_config": sizes | IDS | text, "vision_config": sizes | VISION | vision}
    return CLIPModel(CLIPConfig(**halves, projection_dim=projection_dim)).eval()


def unet(**changes: object) -> UNet2DConditionModel:
    """A UNet of one layer a block and two levels, for the states of a `tower`."""
    torch.manual_seed(1)
    sizes = {"sample_size": 4, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    blocks |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    attention = {"cross_attention_dim": SIZES["hidden_size"], "attention_head_dim": 4}
    return UNet2DConditionModel(**sizes | blocks | attention | changes).eval()


def vae(**changes: object) -> AutoencoderKL:
    """A VAE of two levels."""
    torch.manual_seed(2)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4}
    return AutoencoderKL(**sizes | blocks | changes).eval()
