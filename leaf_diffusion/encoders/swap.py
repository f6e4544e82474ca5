"""Exchanging the text encoder of a pipeline: what has to fit, and how the new one becomes the pipeline's class."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.clip import LEGACY_EOS, HFTextEncoder, text_config_of, text_model_of, token_table
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.encoders.lora import lora_layers, without_lora


def exchanged(
    current: nn.Module,
    tokenizer: Any,
    source: str | Path | nn.Module | TextEncoder | None,
    adapter: str | Path | None = None,
) -> tuple[nn.Module, TextEncoder]:
    """What takes the place of a pipeline's text model, in its class, dtype and device, and the encoder it came from.

    `source` and `adapter` as in `load_text_encoder`; without a source the current model gets the adapter. A projection
    that the pipeline's class has and the new encoder lacks stays the current one. Raises ValueError for a misfit, and
    where the current model carries a LoRA, which would be left behind.
    """
    if source is not current and lora_layers(current):
        raise ValueError(
            "the pipeline's text encoder carries a LoRA, which would stay behind: call unload_lora_weights(), swap, and load "
            "it again (or fuse_lora() and unload_lora_weights() to keep it in the old one)"
        )
    if isinstance(source, TextEncoder):
        if adapter is not None:
            raise ValueError("give the adapter to load_text_encoder, where the encoder was made")
        encoder = source
    else:
        wanted = current if source is None else source
        encoder = load_text_encoder(
            wanted, tokenizer=tokenizer if isinstance(wanted, nn.Module) else None, adapter=adapter
        )
    encoder = fitting(encoder, current, tokenizer)
    return text_model_for_pipeline(encoder, current), encoder


def fitting(encoder: TextEncoder, current: nn.Module, tokenizer: Any) -> TextEncoder:
    """The encoder as the pipeline would run it: itself, or without the last block where the pipeline's text model has one
    block less.

    Stable Diffusion 2 holds 23 of the 24 blocks of a ViT-H and reads the last of these through the final norm, which is the
    state before the last block of a whole CLIP, normalised. So a CLIP that agrees in all else loses its last block, and its
    projection, which was trained on that block's states. Any other difference in depth is a misfit. ValueError for misfits.
    """
    check_swap(current, encoder.module, tokenizer, encoder.tokenizer)
    blocks = text_config_of(text_model_of(current)).num_hidden_layers
    if text_config_of(text_model_of(encoder.module)).num_hidden_layers == blocks:
        return encoder
    module = without_lora(text_model_of(encoder.module))
    config = copy.deepcopy(text_config_of(module))
    config.num_hidden_layers, config.dtype = blocks, token_table(module).weight.dtype
    shorter = _built(CLIPTextModel, config, _weights(module), token_table(module).weight)
    return HFTextEncoder(shorter, encoder.tokenizer, name=encoder.name, defence=encoder.defence)


def check_swap(old: nn.Module, new: nn.Module, tokenizer_old: Any, tokenizer_new: Any = None) -> None:
    """ValueError that names every misfit between a pipeline's text model and the one to take its place.

    The pipeline keeps its own tokenizer, so the new model has to read the same ids (`tokenizer_new=None`: it does),
    and its UNet was trained on states of one width, depth and arithmetic (heads, activation, norms). Widths of projections
    count where the pipeline's model has one. One block more is no misfit where all else agrees: see `fitting`.
    """
    before, after = text_config_of(text_model_of(old)), text_config_of(text_model_of(new))
    sizes = [
        ("width (hidden_size)", before.hidden_size, after.hidden_size),
        ("vocabulary (embedded tokens)", *(token_table(text_model_of(each)).weight.shape[0] for each in (old, new))),
        ("context length (max_position_embeddings)", before.max_position_embeddings, after.max_position_embeddings),
        ("heads (num_attention_heads)", before.num_attention_heads, after.num_attention_heads),
        ("activation (hidden_act)", before.hidden_act, after.hidden_act),
        ("epsilon of the norms (layer_norm_eps)", before.layer_norm_eps, after.layer_norm_eps),
    ]
    projected, other = getattr(old, "text_projection", None), getattr(new, "text_projection", None)
    if projected is not None and other is not None and not unprojected(old):
        sizes.append(("projection width", projected.weight.shape[0], other.weight.shape[0]))
    misfits = [f"{what}: the pipeline has {a}, the new encoder {b}" for what, a, b in sizes if a != b]
    eos = tokenizer_old.eos_token_id
    vocabulary = tokenizer_old.get_vocab()
    if tokenizer_new is not None and tokenizer_new is not tokenizer_old:
        misfits += _tokenizer_misfits(vocabulary, eos, tokenizer_new)
    # eos_token_id=2 (SD-1.5's own config) pools at the largest id, the same place where end-of-text is the largest
    pools_at = max(vocabulary.values()) if after.eos_token_id == LEGACY_EOS != eos else after.eos_token_id
    if pools_at != eos:
        misfits.append(
            f"pooling (eos_token_id): the pipeline's tokenizer ends texts with {eos}, "
            f"the new encoder pools at {pools_at}"
        )
    blocks = before.num_hidden_layers, after.num_hidden_layers
    if blocks[0] != blocks[1] and (misfits or blocks[1] - blocks[0] != 1):
        misfits.append(f"depth (num_hidden_layers): the pipeline has {blocks[0]} blocks, the new encoder {blocks[1]}")
    if misfits:
        raise ValueError(
            "the text encoder does not fit the pipeline: "
            + "; ".join(misfits)
            + ". Use an encoder of the same CLIP family"
        )


def _tokenizer_misfits(vocabulary: dict[str, int], eos: int, new: Any) -> list[str]:
    if hasattr(new, "sot_token_id"):
        return ["tokenizer: the new encoder brings an open_clip tokenizer, the pipeline uses a transformers one"]
    ids = set(vocabulary.items()) ^ set(new.get_vocab().items())
    found = [f"tokenizer: {len(ids)} entries of the two vocabularies differ, such as {min(ids)[0]!r}"] if ids else []
    if new.eos_token_id != eos:
        found.append(f"end of text: the pipeline's tokenizer writes {eos}, the new encoder's {new.eos_token_id}")
    return found


def text_model_for_pipeline(encoder: TextEncoder | nn.Module, like: nn.Module) -> nn.Module:
    """The encoder's weights as a module of `like`'s class, dtype and device; the encoder itself stays untouched.

    A module that already is all that is returned as it is; otherwise LoRA layers are merged. A projection that the encoder
    lacks is `like`'s, and so is one that is the identity: SD3 holds CLIP-L's pooled state that way, which it was trained on
    unprojected. Raises ValueError for towers that are no CLIP text model of transformers, and for values beyond the dtype.
    """
    module = encoder.module if isinstance(encoder, TextEncoder) else encoder
    source, table = text_model_of(module), token_table(text_model_of(like)).weight
    own = token_table(source).weight
    same = (own.dtype, own.device) == (table.dtype, table.device) and unprojected(like) == unprojected(module)
    if type(module) is type(like) and same:
        return module
    weights, config = _weights(without_lora(source)), copy.deepcopy(text_config_of(module))
    for each in (like, module) if unprojected(like) else (module, like):
        if "text_projection.weight" not in weights and getattr(each, "text_projection", None) is not None:
            weights["text_projection.weight"] = each.text_projection.weight
            config.projection_dim = len(weights["text_projection.weight"])
    config.dtype = table.dtype  # transformers builds inner models in the config's dtype, and would round the weights
    return _built(type(like), config, weights, table)


def _weights(text_model: nn.Module) -> dict[str, Tensor]:
    return {key.removeprefix("text_model."): value for key, value in text_model.state_dict().items()}


def _built(kind: type, config: CLIPTextConfig, weights: Mapping[str, Tensor], like: Tensor) -> nn.Module:
    """A text model of a class from the weights it needs of those given, in the dtype and on the device of a tensor."""
    built: nn.Module = kind(config)
    names = list(built.state_dict())  # with or without the prefix "text_model.", as class and version have it
    if missing := [name for name in names if name.removeprefix("text_model.") not in weights]:
        raise ValueError(f"the new text encoder lacks {missing[0]!r}, which the pipeline's {kind.__name__} needs")
    built.load_state_dict({name: weights[name.removeprefix("text_model.")] for name in names})
    built = built.to(like.device, like.dtype).eval().requires_grad_(False)
    if beyond := [name for name, value in built.state_dict().items() if not torch.isfinite(value).all()]:
        raise ValueError(
            f"the new text encoder's {beyond[0]} has values that {like.dtype} cannot hold, or that are none"
        )
    return built


def unprojected(module: nn.Module) -> bool:
    """Whether the module has a text projection that leaves the pooled state as it is."""
    projection = getattr(module, "text_projection", None)
    return projection is not None and is_identity(projection.weight)


def is_identity(weight: Tensor) -> bool:
    """Whether a matrix is the identity, exactly."""
    rows, columns = weight.shape
    return rows == columns and torch.equal(weight, torch.eye(rows, dtype=weight.dtype, device=weight.device))
