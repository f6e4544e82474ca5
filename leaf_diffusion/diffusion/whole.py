"""Whether what diffusers loaded is what is stored: it fills in a missing tensor, and passes by those left over and NaN."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from leaf_diffusion.encoders.single_file import places_in, under
from leaf_diffusion.weights.files import check_finite, read_header
from leaf_diffusion.weights.models import BUFFERS

_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""The names of attention layers in older VAEs, which diffusers reads."""
_IN_ONE_FILE = {
    "unet": ("model.diffusion_model.", UNet2DConditionModel),
    "vae": ("first_stage_model.", AutoencoderKL),
}
"""Where the networks of Stable Diffusion 1, 2 and XL lie in a single file."""
_SHARD = r"(?:-\d+-of-\d+)?"
_FILE = re.compile(rf"(?:diffusion_pytorch_)?model{_SHARD}(?:\.(\w+))?{_SHARD}\.safetensors")


def check_parts(pipeline: object, options: Mapping[str, object]) -> None:
    """ValueError that names the part and the tensor where a network of a loaded pipeline lacks a stored tensor, leaves one
    over, or holds NaN or infinity. options: of `from_pretrained`; components among them are the caller's own."""
    components: dict[str, object] = getattr(pipeline, "components", {})
    for name, part in components.items():
        if not isinstance(part, nn.Module) or options.get(name) is not None:
            continue
        config = part.config
        place = getattr(part, "name_or_path", None) or getattr(config, "_name_or_path", None) or name
        if Path(place).name == name and Path(place).is_dir() and getattr(config, "quantization_config", None) is None:
            _compare(part, Path(place), options.get("variant"))
        if options.get("device_map") is None:  # else tensors may be elsewhere
            lost = [key for key, tensor in part.state_dict().items() if tensor.device.type == "meta"]
            _refuse(place, part, lost, "missing")
        check_finite(place, part.state_dict().items())


def _compare(part: nn.Module, folder: Path, variant: object) -> None:
    """The names of a part's tensors with those that its folder holds; of several precisions with the one that was asked for."""
    versions: dict[str | None, set[str]] = {}
    for file in folder.glob("*.safetensors"):
        if match := _FILE.fullmatch(file.name):
            versions.setdefault(match[1], set()).update(read_header(file).entries)
    keys = versions.get(variant if isinstance(variant, str) else None) or versions.get(None)
    if keys is None:
        return
    unused = re.compile("|".join(getattr(part, "_keys_to_ignore_on_load_unexpected", None) or ["(?!)"]))
    own = {_plain(key): tensor for key, tensor in part.state_dict().items() if not key.endswith(BUFFERS)}
    stored = {_plain(key): key for key in keys if not key.endswith(BUFFERS) and not unused.search(key)}
    tied = {own[key].data_ptr() for key in stored.keys() & own.keys()}  # one tensor of two names is stored once
    missing = [key for key in own.keys() - stored.keys() if own[key].data_ptr() not in tied]
    _refuse(folder, part, missing, "missing")
    _refuse(folder, part, [stored[key] for key in stored.keys() - own.keys()], "too many")


def check_single_file(pipeline: object, file: Path, options: Mapping[str, object]) -> None:
    """ValueError that names the part where a single file holds more or fewer weights than the network that was made of it:
    a configuration of another depth. options: of `from_single_file`; components among them are the caller's own."""
    header = read_header(file)
    for name, (prefix, kind) in _IN_ONE_FILE.items():
        part = getattr(pipeline, name, None)
        stored = [entry for key, entry in header.entries.items() if key.startswith(prefix) and ".loss." not in key]
        if stored and isinstance(part, kind) and options.get(name) is None:
            there, own = sum(prod(entry.shape) for entry in stored), sum(each.numel() for each in part.parameters())
            if there != own:
                raise ValueError(
                    f"{file}: {there:,} weights under {prefix!r}, and the {type(part).__name__} of the configuration has "
                    f"{own:,}: give config=FOLDER, a pipeline of its kind"
                )
    for place in places_in(header):
        part = getattr(pipeline, place.part, None)
        if isinstance(part, nn.Module) and options.get(place.part) is None:
            there, own = _depth(under(header, place)), part.config.num_hidden_layers
            if own not in (there, there - place.unused):
                raise ValueError(
                    f"{file}: the {place.what} has {there} blocks, and the {place.part} of the configuration {own}: give "
                    "config=FOLDER, a pipeline of its kind"
                )


def _depth(keys: Iterable[str]) -> int:
    return len({match[1] for key in keys if (match := re.search(r"\.(?:layers|resblocks)\.(\d+)\.", key))})


def _refuse(place: str | Path, part: nn.Module, keys: list[str], said: str) -> None:
    if keys:
        raise ValueError(f"{place}: {len(keys)} tensors of {type(part).__name__} are {said}, such as {min(keys)}")


def _plain(key: str) -> str:
    """A tensor's name without what versions of the libraries differ by: Qwen2.5-VL's `model.layers` is `model.language_model.layers`
    by now, and its `visual` is `model.visual`."""
    for before in ("text_model.", "model.", "language_model."):
        key = key.removeprefix(before)
    return ".".join(_ATTENTION.get(part, part) for part in key.split("."))
