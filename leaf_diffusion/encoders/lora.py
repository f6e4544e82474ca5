"""LoRA layers that PEFT has put into a model (`load_lora_weights`, `load_adapter`): found, and merged into a copy."""

from __future__ import annotations

import copy

from torch import nn

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder


def lora_layers(module: nn.Module) -> list[str]:
    """The names of the layers that PEFT has wrapped; empty where the weights are all there is."""
    return [
        name
        for name, layer in module.named_modules()
        if type(layer).__module__.startswith("peft.") and hasattr(layer, "base_layer")
    ]


def without_lora(module: nn.Module) -> nn.Module:
    """The module itself, or, where PEFT has wrapped layers of it, a copy whose plain weights have the active adapters in.

    ValueError where a merged weight is not finite.
    """
    names = lora_layers(module)
    if not names:
        return module
    plain = copy.deepcopy(module)
    for name in names:
        layer, (parent, _, child) = plain.get_submodule(name), name.rpartition(".")
        if not layer.disable_adapters:
            layer.merge(safe_merge=True)
        setattr(plain.get_submodule(parent), child, layer.get_base_layer())
    for each in plain.modules():  # else transformers and diffusers would save the adapter in the place of the weights
        for attribute in ("peft_config", "_hf_peft_config_loaded"):
            each.__dict__.pop(attribute, None)
    return plain.requires_grad_(False)


def plain_encoder(encoder: TextEncoder) -> TextEncoder:
    """The encoder itself, or, where its module carries LoRA layers, one of the same features without them."""
    if not isinstance(encoder, HFTextEncoder) or not lora_layers(encoder.module):
        return encoder
    return HFTextEncoder(
        without_lora(encoder.module),
        encoder.tokenizer,
        name=encoder.name,
        defence=encoder.defence,
        projection=encoder.projection,
    )
