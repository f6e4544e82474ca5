"""The tower that is trained: a copy of the original's, and how it is optimised."""

import copy
from typing import cast

import torch
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.huggingface import HFTextEncoder, text_model_of


class Projected(nn.Module):  # type: ignore[misc]  # strict mode without torch's types
    """Token rows to projected features [n, d], as the one module that accelerate wraps."""

    def __init__(self, encoder: HFTextEncoder) -> None:
        super().__init__()
        self.tower, self._features = encoder.module, encoder.features

    def forward(self, token_rows: list[list[int]]) -> Tensor:
        return self._features(token_rows)


def check_encoder(encoder: TextEncoder) -> HFTextEncoder:
    """The encoder, if it can be finetuned; ValueError if not."""
    if not isinstance(encoder, HFTextEncoder):
        raise ValueError(
            f"{encoder.name} is no transformers model, which the finetuning needs: "
            "load the model's transformers version (CLIPTextModelWithProjection)"
        )
    encoder.require_projection()
    if encoder.defence is not None:
        raise ValueError(f"{encoder.name} has the defence {encoder.defence.name!r} before it: finetune it without")
    return encoder


def trainable_copy(encoder: HFTextEncoder) -> CLIPTextModelWithProjection:
    """The text half of the encoder's model in float32, on its own, ready to train."""
    assert encoder.projection is not None
    settings = copy.deepcopy(encoder.config)
    settings.projection_dim = encoder.projection.out_features
    tower = CLIPTextModelWithProjection(settings).float()
    state = text_model_of(encoder.module).state_dict()
    flat = {name.removeprefix("text_model."): value for name, value in state.items()}
    inner = cast(nn.Module, tower.text_model)
    inner.load_state_dict({name: flat[name.removeprefix("text_model.")] for name in inner.state_dict()})
    tower.text_projection.load_state_dict(encoder.projection.state_dict())
    return tower.requires_grad_()


def new_optimiser(tower: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW without decay on gains, biases (the paper's recipe) and the token table.

    Decay on the table would move the embedding of every token that no caption holds, towards nothing.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in tower.named_parameters():
        (kept if parameter.ndim < 2 or "token_embedding" in name else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=True)
