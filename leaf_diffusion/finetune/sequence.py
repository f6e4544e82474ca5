"""The tower that is trained where token states are read and nothing is pooled: T5, BERT and language models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2TextScaledWordEmbedding

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.features import MeanState
from leaf_diffusion.encoders.lora import lora_layers
from leaf_diffusion.encoders.sequence import SequenceTextEncoder
from leaf_diffusion.finetune.config import TextFAREConfig
from leaf_diffusion.finetune.tower import check_defence

DROPOUTS = ("dropout", "attention_dropout")
"""Attributes of transformers' layers that hold a share."""


def check_sequence(encoder: SequenceTextEncoder, config: TextFAREConfig, tokens: Sequence[int] | None) -> None:
    """ValueError for an encoder that cannot be finetuned as it is, and for settings that belong to CLIPs."""
    check_defence(encoder)
    parameters = list(encoder.module.parameters())
    if lora_layers(encoder.module):
        raise ValueError(f"{encoder.name} carries a LoRA: merge it first (merge_and_unload of peft)")
    if len({each.device for each in parameters}) > 1 or any(each.device.type == "meta" for each in parameters):
        raise ValueError(f"{encoder.name} is offloaded or spread over several devices: load it on one")
    if not all(each.is_floating_point() and each.dtype.itemsize > 1 for each in parameters):
        raise ValueError(f"{encoder.name} is quantised: load it in bfloat16, or in float32 without lora_rank")
    if config.spelling:
        raise ValueError("spelling=True reads the pieces of CLIP's byte-pair encoding; this tokenizer has others")
    if tokens is not None:
        raise ValueError(
            f"single rows of the token table are trained of CLIPs alone, {encoder.name} is none: leave tokens out"
        )


def check_like(encoder: SequenceTextEncoder, begin: TextEncoder) -> SequenceTextEncoder:
    """`begin`, if a training of `encoder` can begin at it; ValueError if not."""
    if not isinstance(begin, SequenceTextEncoder) or type(begin.module) is not type(encoder.module):
        raise ValueError(
            f"{begin.name} is no {type(encoder.module).__name__} as {encoder.name} is: a training cannot begin there"
        )
    if begin.reading != encoder.reading:
        raise ValueError(
            f"{begin.name} reads prompts otherwise than {encoder.name}: {begin.reading}, {encoder.reading}"
        )
    return begin


def sequence_copy(encoder: SequenceTextEncoder, *, share: bool) -> nn.Module:
    """The encoder's whole model without dropout: in float32 and all of it trained that the states depend on, or (`share`) with
    the encoder's own weights, of which none is trained."""
    # the base of a LoRA is the original's: one copy of billions of weights is enough
    memo: dict[int, Any] = (
        {id(each): nn.Parameter(each.detach(), requires_grad=False) for each in encoder.module.parameters()}
        if share
        else {}
    )
    module = copy.deepcopy(encoder.module, memo)
    for each in module.modules():
        if isinstance(each, nn.Dropout):
            each.p = 0.0
        for name in DROPOUTS:  # the target is the original's state without it
            if isinstance(getattr(each, name, None), float):
                setattr(each, name, 0.0)
    return module if share else module.float().requires_grad_()


def freeze_unread(encoder: SequenceTextEncoder) -> None:
    """Train nothing that the states which are read do not depend on: heads, poolers, blocks behind the last one that is read."""
    parameters = [each for each in encoder.module.parameters() if each.requires_grad]
    with torch.enable_grad():
        said = encoder.features(encoder.tokenize(["a"]), MeanState()).sum()
        found = torch.autograd.grad(said, parameters, allow_unused=True)
    for each, gradient in zip(parameters, found, strict=True):
        each.requires_grad_(gradient is not None)


def linear_names(encoder: SequenceTextEncoder) -> list[str]:
    """PEFT's `target_modules` for all linear layers that the states which are read depend on, and no others of the module."""
    depth = encoder.config.num_hidden_layers
    blocks: Any = next(
        each for each in encoder.tower.modules() if isinstance(each, nn.ModuleList) and len(each) == depth
    )
    last = max(layer % (depth + 1) for layer in encoder.reading.layers)
    inside = {id(each) for block in blocks[:last] for each in block.modules()}
    linear = {name: id(each) in inside for name, each in encoder.module.named_modules() if isinstance(each, nn.Linear)}
    ends = {True: set[str](), False: set[str]()}
    for name, ours in linear.items():
        ends[ours].add(name.rpartition(".")[2])
    short = not ends[True] & ends[False]
    return sorted(ends[True]) if short else [name for name, ours in linear.items() if ours]


def table_name(encoder: SequenceTextEncoder) -> str:
    """Where the token table stands in the module. ValueError for a table that is no plain one, nor Gemma's, which scales."""
    if type(encoder.table) not in (nn.Embedding, Gemma2TextScaledWordEmbedding):
        kind = type(encoder.table).__name__
        raise ValueError(
            f"{encoder.name} has a {kind} as token table, which a LoRA cannot cover: lora_token_embedding=False"
        )
    return next(name for name, each in encoder.module.named_modules() if each is encoder.table)
