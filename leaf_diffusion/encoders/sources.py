"""Tables of what is imported when used, so that nobody imports upwards: the loader of a name such as "world:leaf", and the
encoder class of a module of another kind than CLIP."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

# A loader is called as f(name, **keywords) -> (module, tokenizer).
_LOADERS: dict[str, str] = {
    "world": "leaf_diffusion.world.sources:load_world_encoder",
    "openclip": "leaf_diffusion.encoders.openclip:load_openclip",
}
# of image towers: f(name) -> (module, CLIPImageProcessor, or whatever for open_clip's models, which know their own)
_IMAGE_LOADERS: dict[str, str] = {
    "world": "leaf_diffusion.world.sources:load_world_image_encoder",
    "openclip": "leaf_diffusion.encoders.openclip:load_openclip",
}
# of captions that such a source was trained on: f() -> list of texts
_CAPTIONS: dict[str, str] = {"world": "leaf_diffusion.world.captions:training_captions"}
# a configuration's model_type -> the text encoder of token states
_SEQUENCES: dict[str, str] = {
    **dict.fromkeys(("t5", "umt5", "bert"), "leaf_diffusion.encoders.bidirectional:BidirectionalTextEncoder"),
    **dict.fromkeys(
        ("qwen2", "qwen3", "gemma2", "mistral", "llama", "qwen2_5_vl", "qwen2_5_vl_text"),
        "leaf_diffusion.encoders.decoder:DecoderTextEncoder",
    ),
}
# what a prompt goes through first -> f() or, for "name:argument", f(argument) that makes it
_CLEANERS: dict[str, str] = {
    "lowered": "leaf_diffusion.tokens.reading:Lowered",
    "caption": "leaf_diffusion.diffusion.templates:caption_cleaner",
}
# the name of a module's class -> its text encoder, called as f(module, tokenizer, name=, defence=)
_KINDS: dict[str, str] = {}


def register(prefix: str, loader: str) -> None:
    """Make "prefix:name" load through `loader`, written "package.module:function"."""
    if ":" in prefix or ":" not in loader:
        raise ValueError(f'expected a prefix without ":" and a loader "module:function", got {prefix!r} and {loader!r}')
    _LOADERS[prefix] = loader


def register_kind(module: type[nn.Module], encoder: str) -> None:
    """Make modules of a class text encoders through `encoder`, written "package.module:class"."""
    if ":" not in encoder:
        raise ValueError(f'expected an encoder "module:class", got {encoder!r}')
    _KINDS[module.__name__] = encoder


def kind_of(module: nn.Module) -> Callable[..., Any] | None:
    """The registered text encoder of a module's class, or of one that it inherits from; None for CLIP's own."""
    named = next((_KINDS[each.__name__] for each in type(module).__mro__ if each.__name__ in _KINDS), None)
    return None if named is None else _resolved(named)


def sequence_kind(config: Any) -> Any:
    """The class (a `SequenceTextEncoder`) of a text encoder of token states, by a configuration; None for other models."""
    named = _SEQUENCES.get(getattr(config, "model_type", ""))
    return None if named is None else _resolved(named)


def cleaner(name: str) -> Callable[[str], str]:
    """What a prompt goes through, by the name that it is stored by. ValueError for unknown ones."""
    kind, colon, argument = name.partition(":")
    if kind not in _CLEANERS:
        raise ValueError(f"{name!r} is nothing known here that a prompt goes through; known: {', '.join(_CLEANERS)}")
    found: Callable[[str], str] = _resolved(_CLEANERS[kind])(*([argument] if colon else []))
    return found


def prefixes() -> list[str]:
    return sorted(_LOADERS)


def split(source: str, *, images: bool = False) -> tuple[str, str] | None:
    """("world", "leaf") for "world:leaf"; None where the source has no registered prefix. `images`: of image towers."""
    prefix, colon, name = source.partition(":")
    return (prefix, name) if colon and prefix in (_IMAGE_LOADERS if images else _LOADERS) else None


def load(prefix: str, name: str, *, images: bool = False, **keywords: Any) -> tuple[nn.Module, Any]:
    """Module and tokenizer from the loader of `prefix`; of an image tower, module and preprocessing."""
    found: tuple[nn.Module, Any] = _resolved((_IMAGE_LOADERS if images else _LOADERS)[prefix])(name, **keywords)
    return found


def captions(name: str) -> list[str] | None:
    """The training captions of a registered source; None for another name."""
    return _resolved(_CAPTIONS[name])() if name in _CAPTIONS else None


def _resolved(name: str) -> Callable[..., Any]:
    """What "package.module:attribute" names."""
    module, _, attribute = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return found
