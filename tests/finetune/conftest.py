"""A tiny CLIP text tower with random weights and the real tokenizer."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.tokens.tokenizer import clip_tokenizer


@pytest.fixture(scope="module")
def encoder() -> HFTextEncoder:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, projection_dim=16,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    return HFTextEncoder(CLIPTextModelWithProjection(config).eval(), clip_tokenizer(), name="tiny")
