"""Names such as "world:leaf": a table from prefix to loader, imported when used, so that nobody imports upwards."""

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


def register(prefix: str, loader: str) -> None:
    """Make "prefix:name" load through `loader`, written "package.module:function"."""
    if ":" in prefix or ":" not in loader:
        raise ValueError(f'expected a prefix without ":" and a loader "module:function", got {prefix!r} and {loader!r}')
    _LOADERS[prefix] = loader


def prefixes() -> list[str]:
    return sorted(_LOADERS)


def split(source: str, *, images: bool = False) -> tuple[str, str] | None:
    """("world", "leaf") for "world:leaf"; None where the source has no registered prefix. `images`: of image towers."""
    prefix, colon, name = source.partition(":")
    return (prefix, name) if colon and prefix in (_IMAGE_LOADERS if images else _LOADERS) else None


def load(prefix: str, name: str, *, images: bool = False, **keywords: Any) -> tuple[nn.Module, Any]:
    """Module and tokenizer from the loader of `prefix`; of an image tower, module and preprocessing."""
    module, _, function = (_IMAGE_LOADERS if images else _LOADERS)[prefix].partition(":")
    loader: Callable[..., tuple[nn.Module, Any]] = getattr(importlib.import_module(module), function)
    return loader(name, **keywords)
