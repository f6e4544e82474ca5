"""One door to every text tower: a folder, a Hub id, a pipeline folder, "world:leaf", "openclip:...", or a module."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from torch import nn
from transformers import CLIPConfig, CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils.hub import cached_file

from leaf_diffusion.encoders import sources
from leaf_diffusion.encoders.base import Defence, TextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.encoders.defences import defence_from_name
from leaf_diffusion.encoders.reading_file import FILE as READING
from leaf_diffusion.encoders.reading_file import read_reading
from leaf_diffusion.encoders.single_file import load_single_file
from leaf_diffusion.encoders.stored_tokenizer import (
    ABSENT,
    MOST_TOKENS,
    at,
    clip_tokenizer_for,
    tokenizer_beside,
    tokenizer_from,
)
from leaf_diffusion.tokens.reading import Reading
from leaf_diffusion.weights.errors import loading, looks_like_path
from leaf_diffusion.weights.files import check_finite
from leaf_diffusion.weights.models import Where, load_config, load_model
from leaf_diffusion.weights.pickles import require_safetensors

SLACK = 50_000_000  # weights that any machine can hold
_IMAGES = ("vision_model.", "visual_projection.", "logit_scale")
_SPARE = {CLIPTextModelWithProjection: _IMAGES, CLIPTextModel: (*_IMAGES, "text_projection.")}


def load_text_encoder(
    source: str | Path | nn.Module,
    *,
    tokenizer: Any = None,
    adapter: str | Path | None = None,
    defence: str | Defence | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    reading: Reading | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> TextEncoder:
    """A text encoder from whatever names it.

    `source`: a folder of a CLIP (text) model, a T5, a BERT or a language model, or of a diffusers pipeline with CLIPs, a Hub id of
    either, a .safetensors file (a text encoder as in ComfyUI, or a checkpoint, where `subfolder="text_encoder_2"` is its second
    tower), "prefix:name" of a registered source ("world:leaf", "openclip:ViT-L-14-quickgelu/openai"), or a module together with
    `tokenizer`.
    `tokenizer`: an object, a folder or a Hub id; else the source's own, else CLIP's where the vocabulary is CLIP's.
    `adapter`: a PEFT LoRA folder or Hub id, merged into a copy of the weights. `defence`: "speller", "visible",
    "canonical", "canonical:FILE" with the captions of a file, or a callable with `name` and `fingerprint`. `reading`: how prompts
    are written for an encoder that is no CLIP; else what `adapter` or `source` was finetuned with (reading.json), else the plain
    tokenizer's. `dtype`: float32 unless given (a module keeps its own). Loads safetensors only.

    Raises FileNotFoundError where nothing is found, ValueError for pickles, damaged files, misfitting tokenizers or
    adapters.
    """
    dtype = dtype_from_name(dtype) if isinstance(dtype, str) else dtype
    if isinstance(tokenizer, (str, Path)):
        tokenizer = tokenizer_from(str(tokenizer), None, None)
    named = None if isinstance(source, nn.Module) else sources.split(str(source))
    if isinstance(source, nn.Module):
        if tokenizer is None:
            raise ValueError("a module comes without its tokenizer: pass tokenizer=...")
        module, name, stored = source, type(source).__name__, None
    elif named is not None:
        if revision is not None or subfolder is not None:
            raise ValueError(f'"{source}" has no revision or subfolder: these belong to folders and Hub ids')
        module, own = sources.load(*named)
        name, tokenizer, stored = str(source), tokenizer if tokenizer is not None else own, None
        module = module.to(dtype or torch.float32)
    else:
        name = str(source)
        module, own, stored = _from_transformers(
            name,
            revision,
            subfolder,
            dtype or torch.float32,
            need_tokenizer=tokenizer is None,
            read=reading is not None,
        )
        tokenizer = tokenizer if tokenizer is not None else own
    if adapter is not None:
        from leaf_diffusion.encoders.adapter import adapter_folder, merge_adapter

        with loading(str(adapter), "the adapter cannot be merged"):
            module = merge_adapter(module, str(adapter))
        stored = _reading_of(str(adapter_folder(str(adapter))), {}) or stored
        name = f"{name}+{Path(adapter).name}"
    if not isinstance(source, nn.Module):
        module = module.eval().requires_grad_(False)
    if isinstance(source, nn.Module) and adapter is None and (dtype is not None or device is not None):
        module = copy.deepcopy(module)  # the caller's module stays where and what it is
    module = module.to(device=device, dtype=dtype)
    defence = load_defence(defence)
    check_finite(name, module.state_dict().items())
    reading = reading or stored
    if isinstance(source, nn.Module):
        return wrap(module, tokenizer, name=name, defence=defence, reading=reading)
    with loading(name, "its configuration and tokenizer do not fit together"):
        return wrap(module, tokenizer, name=name, defence=defence, reading=reading)


def wrap(
    module: nn.Module,
    tokenizer: Any,
    *,
    name: str | None = None,
    defence: Defence | None = None,
    reading: Reading | None = None,
) -> TextEncoder:
    """The encoder around a transformers or open_clip module, or one of a registered kind, which is used as it is."""
    config = getattr(module, "config", None)
    if (sequence := sources.sequence_kind(config)) is not None:
        reading = reading or plain_reading(config, tokenizer)
        found: TextEncoder = sequence(module, tokenizer, reading=reading, name=name, defence=defence)
        return found
    if reading is not None:
        raise ValueError(f"{name or type(module).__name__} is read as CLIPs are: reading= is for other text encoders")
    if (kind := sources.kind_of(module)) is not None:
        encoder: TextEncoder = kind(module, tokenizer, name=name or type(module).__name__, defence=defence)
        return encoder
    if hasattr(module, "config") and hasattr(module.config, "to_dict"):
        return HFTextEncoder(module, tokenizer, name=name, defence=defence)
    from leaf_diffusion.encoders.openclip import OpenCLIPTextEncoder

    return OpenCLIPTextEncoder(module, tokenizer, name=name, defence=defence)


def plain_reading(config: Any, tokenizer: Any) -> Reading:
    """What the tokenizer makes of a text and nothing around it, as long as tokenizer and model can have it, or 512 tokens."""
    limits = [
        getattr(tokenizer, "model_max_length", None),
        getattr(config.get_text_config(), "max_position_embeddings", None),
    ]
    return Reading(min((int(limit) for limit in limits if limit and limit < MOST_TOKENS), default=512))


def _from_transformers(
    source: str, revision: str | None, subfolder: str | None, dtype: torch.dtype, *, need_tokenizer: bool, read: bool
) -> tuple[nn.Module, Any, Reading | None]:
    """Module, tokenizer (None where there is need of none) and stored reading. `read`: whether a reading is given."""
    folder = Path(source).expanduser()
    if folder.is_file():
        if revision is not None:
            raise ValueError(f"{source} is a file, which has no revision")
        module = load_single_file(folder, subfolder, dtype)
        return module, clip_tokenizer_for(source, None, module.config.vocab_size) if need_tokenizer else None, None
    if folder.is_dir():
        source = str(folder)
    elif looks_like_path(source):
        raise FileNotFoundError(_not_found(source, f"the folder {folder.absolute()} does not exist"))
    where: Where = {"revision": revision, "subfolder": subfolder or ""}
    tokenizer_folder = subfolder
    try:
        if subfolder is None and cached_file(source, "model_index.json", revision=revision, **ABSENT):
            where["subfolder"], tokenizer_folder = "text_encoder", "tokenizer"
        if cached_file(source, "config.json", **where, **ABSENT) is None:
            offline = "HF_HUB_OFFLINE is set, and it was not downloaded before"
            absent = f"there is no {at(where['subfolder'])}config.json"
            raise FileNotFoundError(_not_found(source, absent if folder.is_dir() or not is_offline_mode() else offline))
        if folder.is_dir():
            require_safetensors(folder / where["subfolder"])
        config = load_config(source, where)
        if (sequence := sources.sequence_kind(config)) is not None:
            stored = _reading_of(source, where)
            if not read and stored is None and cached_file(source, "model_index.json", revision=revision, **ABSENT):
                raise ValueError(_not_read(source, where["subfolder"], config.model_type))
            with loading(source, f"{at(where['subfolder'])}config.json cannot be used"):
                if folder.is_dir():
                    _check_size(source, config.get_text_config(), folder / where["subfolder"])
                kind, spare = sequence.stored_as(config)
            module, _ = load_model(kind, source, where, config=config, dtype=dtype, spare=spare)
            return module, tokenizer_beside(source, where) if need_tokenizer else None, stored
        if getattr(config, "model_type", "") not in ("clip", "clip_text_model"):
            raise ValueError(f'{source}: model_type "{config.model_type}" is no text encoder that is known here')
        with loading(source, f"{at(where['subfolder'])}config.json cannot be used"):
            text = config.text_config if isinstance(config, CLIPConfig) else config
            if isinstance(config, CLIPConfig):
                text.projection_dim = config.projection_dim  # the text half often carries a stale default
            if folder.is_dir():
                _check_size(source, text, folder / where["subfolder"])
            plain = (config.architectures or [""])[0] == "CLIPTextModel"
        kinds = (CLIPTextModel, CLIPTextModelWithProjection)[0 if plain else 1 :]
        for kind in kinds:
            module, left = load_model(kind, source, where, config=text, dtype=dtype, spare=_SPARE[kind])
            if not any(key.startswith("text_projection.") for key in left):
                break  # else the weights have a projection, whatever the configuration calls the tower
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileNotFoundError(_not_found(source, str(error).strip().splitlines()[0])) from error
    tokenizer = None
    if need_tokenizer:
        tokenizer = tokenizer_from(source, tokenizer_folder, revision, vocabulary=text.vocab_size)
    return module, tokenizer, None


def _reading_of(source: str, where: Where) -> Reading | None:
    """How a text encoder was read when it was finetuned; None where nothing says so."""
    file = cached_file(source, READING, **where, **ABSENT)
    return None if file is None else read_reading(Path(file))


def _not_read(source: str, part: str, model_type: str) -> str:
    return (
        f"{source}: its {part} is of model_type {model_type!r}, and how a prompt is written for it, the pipeline's class says: "
        f"leaf-diffusion finetune --pipeline {source} --part {part}; in Python sequence_encoder(pipe, {part!r}) of "
        "leaf_diffusion.diffusion.readings, or give reading="
    )


def _check_size(source: str, config: Any, folder: Path) -> None:
    """ValueError for a configuration far larger than the stored weights: one damaged digit would fill the memory."""
    width = max(config.hidden_size, 1)
    inner = max(getattr(config, "intermediate_size", 0), getattr(config, "d_ff", 0), 1)
    block = 4 * width * width + 2 * width * inner
    places = 0 if hasattr(config, "rope_parameters") else getattr(config, "max_position_embeddings", 0)
    wanted = config.num_hidden_layers * block + width * (config.vocab_size + places)
    wanted += width * max(getattr(config, "projection_dim", None) or 0, 0)
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if wanted > 4 * stored + SLACK:  # of 4 bits each there are twice as many as bytes
        raise ValueError(
            f"{source}: config.json describes a tower of {wanted:.3g} weights, of which {stored:,} bytes hold few"
        )


def _not_found(source: str, reason: str) -> str:
    return (
        f"no text encoder {source!r}: {reason}. Looked for a folder with config.json and *.safetensors "
        "(or with a diffusers model_index.json), "
        f"then for that id on the Hugging Face Hub. Known prefixes: {', '.join(sources.prefixes())}; "
        '"world:original" works without a network. Check the spelling and the connection, or give a local folder.'
    )


def dtype_from_name(name: str) -> torch.dtype:
    """torch.float16 from "float16" or "torch.float16". Raises ValueError."""
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}; use float32, float16 or bfloat16")
    return found


def load_defence(defence: str | Defence | None) -> Defence | None:
    """A defence from its name; a defence or None comes back as it is."""
    if not isinstance(defence, str):
        return defence
    return defence_from_name(defence)
