"""Weights of CLIPs between transformers and open_clip, both ways, whole models or text towers, by tables of keys."""

from __future__ import annotations

import re

import torch
from torch import Tensor

State = dict[str, Tensor]

# transformers name -> open_clip name; {} is a block's number
_BLOCK = {
    "layer_norm1.weight": "ln_1.weight",
    "layer_norm1.bias": "ln_1.bias",
    "layer_norm2.weight": "ln_2.weight",
    "layer_norm2.bias": "ln_2.bias",
    "self_attn.out_proj.weight": "attn.out_proj.weight",
    "self_attn.out_proj.bias": "attn.out_proj.bias",
    "mlp.fc1.weight": "mlp.c_fc.weight",
    "mlp.fc1.bias": "mlp.c_fc.bias",
    "mlp.fc2.weight": "mlp.c_proj.weight",
    "mlp.fc2.bias": "mlp.c_proj.bias",
}
_TEXT = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    **{f"text_model.encoder.layers.{{}}.{hf}": f"transformer.resblocks.{{}}.{oc}" for hf, oc in _BLOCK.items()},
}
_VISION = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    **{
        f"vision_model.encoder.layers.{{}}.{hf}": f"visual.transformer.resblocks.{{}}.{oc}" for hf, oc in _BLOCK.items()
    },
}
_TO_OPEN_CLIP = _TEXT | _VISION | {"logit_scale": "logit_scale"}
_TO_TRANSFORMERS = {oc: hf for hf, oc in _TO_OPEN_CLIP.items()}
_TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
_ATTENTION = {
    "text_model.encoder.layers.{}": "transformer.resblocks.{}",
    "vision_model.encoder.layers.{}": "visual.transformer.resblocks.{}",
}
_NUMBER = re.compile(r"\.(\d+)\.")
_IGNORED = ("position_ids", "attn_mask")


def to_open_clip(state: State) -> State:
    """A transformers CLIPModel's or CLIPTextModelWithProjection's state under open_clip's names (copies where the
    layout differs). Raises ValueError for tensors that have no place there."""
    found: State = {}
    state = {full_name(key): value for key, value in state.items() if not key.endswith(_IGNORED)}
    for key, value in state.items():
        block, number = _split(key)
        if key in _TRANSPOSED:
            found[_TRANSPOSED[key]] = value.T.contiguous()
        elif block in _TO_OPEN_CLIP:
            found[_TO_OPEN_CLIP[block].format(number)] = value
        elif match := re.fullmatch(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", block):
            prefix, _, kind = match.groups()
            names = [f"{prefix}.self_attn.{letter}_proj.{kind}".format(number) for letter in "qkv"]
            if absent := [name for name in names if name not in state]:
                raise ValueError(f"{key} comes without {absent[0]}: the checkpoint is not whole")
            parts = [state[name] for name in names]
            found[f"{_ATTENTION[prefix]}.attn.in_proj_{kind}".format(number)] = torch.cat(parts)
        else:
            raise ValueError(f"{key} has no place in an open_clip CLIP: is this a transformers CLIP?")
    return found


def to_transformers(state: State) -> State:
    """The way back: an open_clip CLIP's (or CustomTextCLIP's) state, also as a training on several processes stores it
    ("module."), under transformers' names."""
    found: State = {}
    for name, value in state.items():
        key = name.removeprefix("module.").removeprefix("text.")
        if key.endswith(_IGNORED):
            continue
        block, number = _split(key)
        if key in _TRANSPOSED.values():
            (other,) = [hf for hf, oc in _TRANSPOSED.items() if oc == key]
            found[other] = value.T.contiguous()
        elif key == "text_projection.weight":  # a linear layer in newer towers
            found[key] = value
        elif block in _TO_TRANSFORMERS:
            found[_TO_TRANSFORMERS[block].format(number)] = value
        elif match := re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", block):
            prefix, kind = match.groups()
            (layers,) = [hf for hf, oc in _ATTENTION.items() if oc == prefix]
            if not value.ndim or len(value) % 3 or not len(value):
                raise ValueError(f"{name} {list(value.shape)} cannot be split into query, key and value")
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                found[f"{layers}.self_attn.{letter}_proj.{kind}".format(number)] = part.contiguous()
        else:
            raise ValueError(f"{name} has no place in a transformers CLIP (only plain ViT CLIPs of open_clip do)")
    return found


def _split(key: str) -> tuple[str, str]:
    match = _NUMBER.search(key)
    return (key, "") if match is None else (_NUMBER.sub(".{}.", key, count=1), match.group(1))


def full_name(key: str) -> str:
    """CLIPTextModel's own keys lack the "text_model." of the other classes in newer transformers."""
    return f"text_model.{key}" if key.startswith(("embeddings.", "encoder.", "final_layer_norm.")) else key
