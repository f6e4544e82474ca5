"""Single-file safetensors: where the text towers lie in a checkpoint, and a tower read from one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from leaf_diffusion.encoders.convert import full_name, to_transformers
from leaf_diffusion.weights.files import FLOATS, Entry, Header, load_weights, read_header

HEAD = 64  # width of an attention head in every CLIP text tower; a single file need not say it
HEADS = "num_attention_heads"  # where it does: in the metadata of ours
_NOT_THE_TOWERS = ("position_ids", "logit_scale", "logit_bias", "attn_mask")
_IMAGES = ("vision_model.", "visual.", "visual_projection.")  # the other half of a whole CLIP


@dataclass(frozen=True)
class Place:
    """A text tower in a file: the prefix of its keys, how they go on, and the activation that loaders run it with.

    `part`: what diffusers calls the tower. `unused`: how many last blocks loaders never run.
    """

    prefix: str
    what: str
    part: str = "text_encoder"
    open_clip: bool = False
    act: str = "quick_gelu"
    unused: int = 0


PLACES = (
    Place("cond_stage_model.transformer.", "text encoder of Stable Diffusion 1"),
    Place("cond_stage_model.model.", "text encoder of Stable Diffusion 2", open_clip=True, act="gelu", unused=1),
    Place("conditioner.embedders.0.transformer.", "CLIP-L of SDXL"),
    Place("conditioner.embedders.1.model.", "CLIP-G of SDXL", "text_encoder_2", open_clip=True, act="gelu"),
    Place("conditioner.embedders.0.model.", "CLIP-G of SDXL's refiner", "text_encoder_2", open_clip=True, act="gelu"),
    Place("text_encoders.clip_l.transformer.", "CLIP-L of SD3"),
    Place("text_encoders.clip_g.transformer.", "CLIP-G of SD3", "text_encoder_2", act="gelu"),
)


def under(header: Header, place: Place) -> dict[str, Entry]:
    """The tower's own tensors, without the prefix."""
    return {
        key.removeprefix(place.prefix): entry
        for key, entry in header.entries.items()
        if key.startswith(place.prefix) and not key.startswith(_IMAGES) and not key.endswith(_NOT_THE_TOWERS)
    }


def places_in(header: Header) -> list[Place]:
    """The known places of text towers that a file has."""
    return [place for place in PLACES if under(header, place)]


def choose(file: Path, places: list[Place], part: str | None) -> Place:
    """The one place that is meant; ValueError where there is none, or several and no `part`."""
    fitting = [place for place in places if part in (None, place.part)]
    names = ", ".join(f"{place.part} ({place.what})" for place in places)
    if not places:
        raise ValueError(f"{file} holds no text encoder that is known here")
    if not fitting:
        raise ValueError(f"{file} has no {part}, only {names}")
    if len(fitting) > 1:
        raise ValueError(f"{file} has several text encoders, {names}: name the one that is meant")
    return fitting[0]


def load_single_file(file: Path, part: str | None, dtype: torch.dtype) -> nn.Module:
    """The text tower of a single file: `clip_l.safetensors` and the like, a text half of open_clip, or a whole checkpoint
    (`part`: "text_encoder" or "text_encoder_2", where it has both).

    A file tells shapes only; the rest is CLIP's: heads of 64 (unless its metadata say a number), QuickGELU in towers of
    up to 22 blocks and GELU in larger ones. Raises ValueError for files without such a tower.
    """
    header = read_header(file)
    place = choose(file, places_in(header) or _bare(header), part)
    entries = under(header, place)
    if odd := next((key for key, entry in entries.items() if entry.dtype not in FLOATS), None):
        raise ValueError(f"{file}: the tensor {place.prefix + odd!r} is of type {entries[odd].dtype}, no weights")
    stored = load_weights(file, [place.prefix + key for key in entries])
    state = {key.removeprefix(place.prefix): value for key, value in stored.items()}
    state = to_transformers(state) if place.open_clip else {full_name(key): value for key, value in state.items()}
    projected = "text_projection.weight" in state
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    try:
        table = state["text_model.embeddings.token_embedding.weight"]
        width = table.shape[1]
        heads = int(header.metadata.get(HEADS, 0)) or width // HEAD
        if not heads or width % heads:
            raise ValueError(f"its width {width} is no multiple of {HEAD}, as every CLIP's is")
        config = CLIPTextConfig(
            vocab_size=len(table),
            bos_token_id=len(table) - 2,
            eos_token_id=len(table) - 1,
            hidden_size=width,
            num_attention_heads=heads,
            max_position_embeddings=len(state["text_model.embeddings.position_embedding.weight"]),
            num_hidden_layers=blocks(state),
            intermediate_size=len(state["text_model.encoder.layers.0.mlp.fc1.weight"]),
            hidden_act=place.act,
            projection_dim=len(state["text_projection.weight"]) if projected else 0,
            dtype=dtype,
        )
        module, info = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
        if wrong := [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]:
            raise ValueError(f"{len(wrong)} tensors are missing or too many, such as {wrong[0]!r}")
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{file} holds no whole CLIP text tower ({type(error).__name__}: {reason})") from error
    return module


def blocks(keys: Iterable[str]) -> int:
    """How many transformer blocks there are in a tower under transformers' names."""
    return 1 + max((int(match[1]) for key in keys if (match := re.search(r"\.layers\.(\d+)\.", key))), default=-1)


def loader_act(layers: int) -> str:
    """The activation that loaders of bare text encoders (ComfyUI) choose by the number of blocks."""
    return "quick_gelu" if layers < 23 else "gelu"


def _bare(header: Header) -> list[Place]:
    """The place in a file that is a text tower and nothing else (or a whole CLIP)."""
    names = {key.removeprefix("text.") for key in header.entries}
    if "token_embedding.weight" in names:
        layers = len({key for key in names if re.fullmatch(r"transformer\.resblocks\.\d+\.ln_1\.weight", key)})
        return [Place("", "text tower of open_clip", open_clip=True, act=loader_act(layers))]
    if "text_model.embeddings.token_embedding.weight" in map(full_name, names):
        return [Place("", "text tower", act=loader_act(blocks(names)))]
    return []
