"""Exchanging a text encoder that is no CLIP (T5, a language model): it has to be the old one with other weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from torch import nn

from leaf_diffusion.encoders import sources
from leaf_diffusion.encoders.adapter import merge_adapter
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.lora import lora_layers
from leaf_diffusion.encoders.settings import settings
from leaf_diffusion.weights.errors import looks_like_path
from leaf_diffusion.weights.files import check_finite
from leaf_diffusion.weights.models import load_config, load_model


def exchanged_sequence(
    part: str,
    current: nn.Module,
    source: str | Path | nn.Module | TextEncoder | None,
    adapter: str | Path | None = None,
) -> nn.Module:
    """What takes the place of the current text encoder of a pipeline (`part` names it in errors), in its dtype and on its device.

    `source`: a module or text encoder, which is moved and cast as it is and not copied, or a folder or Hub id that transformers
    loads in the class of the current one; None: the current one. `adapter`: a PEFT LoRA folder or Hub id, merged into a copy.
    ValueError names every setting and tensor that differs; FileNotFoundError where nothing is found.
    """
    new = source.module if isinstance(source, TextEncoder) else source
    if new is None:
        new = current
    elif not isinstance(new, nn.Module):
        new = _loaded(part, current, str(new))
    if lora_layers(new):
        raise ValueError(f"{part}: the text encoder carries a LoRA: merge it first (merge_and_unload of peft)")
    if new is not current:
        _check(part, current, new)
    if adapter is not None:
        new = merge_adapter(new, str(adapter))
    if new is current:
        return current
    check_finite(part, new.state_dict().items())
    old = next(current.parameters())
    return new.to(device=old.device, dtype=old.dtype).eval()


def _loaded(part: str, current: nn.Module, source: str) -> nn.Module:
    """The model of a folder or Hub id in the class of the current one."""
    folder, wanted = Path(source).expanduser(), f"a folder or Hub id of a {type(current).__name__}"
    if sources.split(source) is not None:
        raise ValueError(f'{part}: "{source}" names a CLIP; give {wanted}')
    if looks_like_path(source) and not folder.is_dir():
        raise FileNotFoundError(f"{part}: the folder {folder.absolute()} does not exist; give {wanted}")
    source = str(folder) if folder.is_dir() else source
    try:
        config = load_config(source, {})
        check_settings(part, current, config)
        module: nn.Module
        module, _ = load_model(type(current), source, {}, config=config)
    except (OSError, HFValidationError) as error:
        if isinstance(error, FileNotFoundError) and folder.is_dir():
            raise
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"{part}: no text encoder {source!r}: {reason}; give {wanted}") from error
    return module


def _check(part: str, current: nn.Module, new: nn.Module) -> None:
    check_settings(part, current, new.config)
    before, after = ({key: tuple(value.shape) for key, value in each.state_dict().items()} for each in (current, new))
    wrong = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    if type(new) is not type(current) or wrong:
        such = f"; tensors that differ: {len(wrong)}, such as {wrong[0]}" if wrong else ""
        raise ValueError(
            f"{part}: the pipeline has a {type(current).__name__}, the new text encoder is a {type(new).__name__}{such}"
        )


def check_settings(part: str, current: nn.Module, config: Any) -> None:
    """ValueError that names the settings in which a text encoder's configuration differs from the current one's."""
    own: Any = current.config
    before, after = (settings(each.to_dict()) for each in (own, config))
    differing = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    if misfits := [f"{key}: {before.get(key)} here, {after.get(key)} there" for key in differing]:
        raise ValueError(f"{part}: the text encoder does not fit the pipeline: {'; '.join(misfits)}")


def is_quantised(module: object) -> bool:
    """Whether a transformers model holds its weights in another form than its class has them."""
    return getattr(getattr(module, "config", None), "quantization_config", None) is not None
