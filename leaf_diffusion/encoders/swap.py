"""Exchanging the text encoder of a pipeline: what has to fit, and how the new one becomes the pipeline's class."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.clip import LEGACY_EOS, text_config_of, text_model_of, token_table
from leaf_diffusion.encoders.load import load_text_encoder


def exchanged(
    current: nn.Module,
    tokenizer: Any,
    source: str | Path | nn.Module | TextEncoder | None,
    adapter: str | Path | None = None,
) -> tuple[nn.Module, TextEncoder]:
    """What takes the place of a pipeline's text model, in its class, dtype and device, and the encoder it came from.

    `source` and `adapter` as in `load_text_encoder`; without a source the current model gets the adapter. A projection
    that the pipeline's class has and the new encoder lacks stays the current one. Raises ValueError for a misfit.
    """
    if isinstance(source, TextEncoder):
        if adapter is not None:
            raise ValueError("give the adapter to load_text_encoder, where the encoder was made")
        encoder = source
    else:
        wanted = current if source is None else source
        encoder = load_text_encoder(
            wanted, tokenizer=tokenizer if isinstance(wanted, nn.Module) else None, adapter=adapter
        )
    check_swap(current, encoder.module, tokenizer, encoder.tokenizer)
    return text_model_for_pipeline(encoder, current), encoder


def check_swap(old: nn.Module, new: nn.Module, tokenizer_old: Any, tokenizer_new: Any = None) -> None:
    """ValueError that names every misfit between a pipeline's text model and the one to take its place.

    The pipeline keeps its own tokenizer, so the new model has to read the same ids (`tokenizer_new=None`: it does),
    and its UNet was trained on states of one width. Widths of projections count where the pipeline's model has one.
    """
    before, after = text_config_of(text_model_of(old)), text_config_of(text_model_of(new))
    sizes = [
        ("width (hidden_size)", before.hidden_size, after.hidden_size),
        ("vocabulary (embedded tokens)", *(token_table(text_model_of(each)).weight.shape[0] for each in (old, new))),
        ("context length (max_position_embeddings)", before.max_position_embeddings, after.max_position_embeddings),
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

    A module that already is all that is returned as it is. A projection that the encoder lacks is `like`'s, and so is
    one that is the identity: SD3 holds CLIP-L's pooled state that way, which it was trained on unprojected. Raises
    ValueError for towers that are no CLIP text model of transformers.
    """
    module = encoder.module if isinstance(encoder, TextEncoder) else encoder
    source, table = text_model_of(module), token_table(text_model_of(like)).weight
    own = token_table(source).weight
    same = (own.dtype, own.device) == (table.dtype, table.device) and unprojected(like) == unprojected(module)
    if type(module) is type(like) and same:
        return module
    weights = {key.removeprefix("text_model."): value for key, value in source.state_dict().items()}
    config = copy.deepcopy(text_config_of(module))
    for each in (like, module) if unprojected(like) else (module, like):
        if "text_projection.weight" not in weights and getattr(each, "text_projection", None) is not None:
            weights["text_projection.weight"] = each.text_projection.weight
            config.projection_dim = len(weights["text_projection.weight"])
    config.dtype = table.dtype  # transformers builds inner models in the config's dtype, and would round the weights
    built = type(like)(config)
    names = list(built.state_dict())  # with or without the prefix "text_model.", as class and version have it
    if missing := [name for name in names if name.removeprefix("text_model.") not in weights]:
        raise ValueError(
            f"{type(module).__name__} lacks {missing[0]!r}, which the pipeline's {type(like).__name__} needs"
        )
    built.load_state_dict({name: weights[name.removeprefix("text_model.")] for name in names})
    return built.to(table.device, table.dtype).eval().requires_grad_(False)


def unprojected(module: nn.Module) -> bool:
    """Whether the module has a text projection that leaves the pooled state as it is."""
    projection = getattr(module, "text_projection", None)
    return projection is not None and is_identity(projection.weight)


def is_identity(weight: Tensor) -> bool:
    """Whether a matrix is the identity, exactly."""
    rows, columns = weight.shape
    return rows == columns and torch.equal(weight, torch.eye(rows, dtype=weight.dtype, device=weight.device))
