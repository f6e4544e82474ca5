"""Configurations and image preprocessing of CLIPs between transformers and open_clip, both ways.

Each setting that changes what a model computes has a counterpart here, or is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig

from leaf_diffusion.encoders.clip import LEGACY_EOS

EPS = 1e-5
"""Of layer norms, where nothing is said, in both libraries."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RESAMPLE = {"bilinear": 2, "bicubic": 3}
"""open_clip's name -> Pillow's number, which transformers stores."""
_SIZES = frozenset({"width", "layers", "mlp_ratio", "norm_kwargs"})
_READ = {
    "text_cfg": _SIZES | {"context_length", "vocab_size", "heads", "pool_type", "eos_id", "hf_model_pretrained"},
    # patches are dropped in training alone
    "vision_cfg": _SIZES | {"head_width", "patch_size", "image_size", "patch_dropout", "timm_model_pretrained"},
    # how a scale starts says nothing once it is trained, and a tower in a class of its own computes the same
    "model_cfg": frozenset({"embed_dim", "quick_gelu", "text_cfg", "vision_cfg", "custom_text", "init_logit_scale"}),
}

ModelCfg = dict[str, object]
"""open_clip's `model_cfg`, as its JSON holds it."""


def open_clip_config(config: CLIPConfig | CLIPTextConfig) -> ModelCfg:
    """`model_cfg` of open_clip for a transformers configuration, GELU and QuickGELU told apart. ValueError for settings
    that open_clip does not have."""
    text = config.text_config if isinstance(config, CLIPConfig) else config
    if text.eos_token_id not in (LEGACY_EOS, text.vocab_size - 1):
        raise ValueError(
            f"eos_token_id {text.eos_token_id} is not the largest token id ({text.vocab_size - 1}), where open_clip pools"
        )
    quick = _is_quick(text.hidden_act)
    found: ModelCfg = {
        "embed_dim": config.projection_dim,
        "quick_gelu": quick,
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "heads": text.num_attention_heads,
            **_blocks(text),
        },
    }
    if isinstance(config, CLIPConfig):
        vision = config.vision_config
        if _is_quick(vision.hidden_act) != quick:
            raise ValueError("the towers have different activations, which one open_clip model cannot have")
        if vision.num_channels != 3:
            raise ValueError(f"num_channels {vision.num_channels}: open_clip reads images of 3 channels")
        found["vision_cfg"] = {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            **_blocks(vision),
        }
    return found


def _blocks(half: Any) -> ModelCfg:
    """What both towers have of transformers' settings."""
    if half.attention_dropout:
        raise ValueError(f"attention_dropout {half.attention_dropout}: open_clip has none")
    ratio = half.intermediate_size / half.hidden_size
    if int(half.hidden_size * ratio) != half.intermediate_size:  # open_clip cuts off
        ratio = math.nextafter(ratio, math.inf)
    norm: ModelCfg = {} if half.layer_norm_eps == EPS else {"norm_kwargs": {"eps": half.layer_norm_eps}}
    return {"layers": half.num_hidden_layers, "width": half.hidden_size, "mlp_ratio": ratio} | norm


def transformers_config(model: Mapping[str, Any]) -> CLIPConfig:
    """The transformers configuration for open_clip's `model_cfg`. ValueError for towers that are no plain ViT CLIP, and
    for each setting that transformers does not have."""
    try:
        return _transformers_config(model)
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:  # a damaged file's values
        raise ValueError(f"no model_cfg of an open_clip CLIP ({type(error).__name__}: {error})") from error


def _transformers_config(model: Mapping[str, Any]) -> CLIPConfig:
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    given, shown = model["text_cfg"], model.get("vision_cfg", {})
    if "hf_model_name" in given or "timm_model_name" in shown or isinstance(shown.get("layers"), list):
        raise ValueError("only CLIPs of plain open_clip ViT and text towers exist in transformers")
    _refuse_unread("model_cfg", model, dict.fromkeys(("init_logit_bias", "nonscalar_logit_scale", "multimodal_cfg")))
    text, vision = _whole("text_cfg", given, CLIPTextCfg), _whole("vision_cfg", shown, CLIPVisionCfg)
    last = text["vocab_size"] - 1
    if (text["pool_type"], text["eos_id"]) != ("eos", last) and text["pool_type"] != "argmax":
        raise ValueError(
            f"text_cfg.pool_type {text['pool_type']!r} (eos_id {text['eos_id']}): transformers pools at end-of-text ({last})"
        )
    act = {
        "hidden_act": "quick_gelu" if model.get("quick_gelu", False) else "gelu",
        "projection_dim": model["embed_dim"],
    }
    # 49407 and not transformers' old default 2, which pools at the largest token id
    text_config = act | _half("text_cfg", text) | {
        "bos_token_id": last - 1,
        "eos_token_id": last,
        "num_attention_heads": text["heads"],
        "max_position_embeddings": text["context_length"],
        "vocab_size": text["vocab_size"],
    }  # fmt: skip
    vision_config = act | _half("vision_cfg", vision) | {
        "num_attention_heads": vision["width"] // vision["head_width"],
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
    }  # fmt: skip
    return CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=model["embed_dim"])


def _half(section: str, cfg: Mapping[str, Any]) -> ModelCfg:
    """What both towers have of open_clip's settings."""
    norm = cfg["norm_kwargs"] or {}
    if set(norm) - {"eps"}:
        raise ValueError(f"{section}.norm_kwargs {norm}: transformers has the eps of its norms alone")
    return {
        "hidden_size": cfg["width"],
        "intermediate_size": int(cfg["width"] * cfg["mlp_ratio"]),
        "num_hidden_layers": cfg["layers"],
        "layer_norm_eps": norm.get("eps", EPS),
    }


def _whole(section: str, given: Mapping[str, Any], kind: type) -> Mapping[str, Any]:
    """A section with open_clip's defaults for what it leaves out."""
    defaults = {field.name: field.default for field in fields(kind)}
    _refuse_unread(section, given, defaults)
    return {**defaults, **given}


def _refuse_unread(section: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if key not in _READ[section] and (key not in defaults or (value or None) != (defaults[key] or None)):
            raise ValueError(f"{section}.{key} is {value!r}, which a CLIP of transformers does not have")


def preprocess_config(processor: CLIPImageProcessor) -> ModelCfg:
    """`preprocess_cfg` of open_clip for a processor of transformers. ValueError for steps that open_clip does not have."""
    has = processor.to_dict()
    size, crop = dict(has["size"]), dict(has["crop_size"])
    side = size.get("shortest_edge")
    names = {number: name for name, number in RESAMPLE.items()}
    problems = [
        (not (has["do_resize"] and has["do_center_crop"] and has["do_rescale"]), "a step is left out"),
        (side is None or set(crop.values()) != {side}, f"size {size} with crop_size {crop}"),
        (has["resample"] not in names, f"resample {has['resample']}"),
        (not math.isclose(has["rescale_factor"], 1 / 255), f"rescale_factor {has['rescale_factor']}"),
    ]
    if found := [said for wrong, said in problems if wrong]:
        raise ValueError(f"the image preprocessing has no counterpart in open_clip: {'; '.join(found)}")
    normalised = has["do_normalize"]
    return {
        "size": side,
        "mean": list(has["image_mean"]) if normalised else [0.0] * 3,
        "std": list(has["image_std"]) if normalised else [1.0] * 3,
        "interpolation": names[has["resample"]],
        "resize_mode": "shortest",
    }


def image_processor(side: int, cfg: Mapping[str, Any] | None = None) -> CLIPImageProcessor:
    """transformers' processor for open_clip's `preprocess_cfg` (None: CLIP's own) of a tower that takes images of `side`.
    ValueError for steps that transformers does not have."""
    cfg = cfg or {}
    plain = {"size": (side, [side, side]), "mode": ("RGB",), "resize_mode": ("shortest",), "fill_color": (0,)}
    for key, value in cfg.items():
        if key in plain and value not in plain[key]:
            raise ValueError(f"preprocess_cfg.{key} is {value!r}, which a CLIP of transformers at {side} does not have")
        if key not in (*plain, "mean", "std", "interpolation"):
            raise ValueError(f"preprocess_cfg.{key} is not known")
    if (resample := RESAMPLE.get(cfg.get("interpolation", "bicubic"))) is None:
        raise ValueError(f"preprocess_cfg.interpolation is {cfg['interpolation']!r}; known: {', '.join(RESAMPLE)}")
    return CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        resample=resample,
        image_mean=list(cfg.get("mean", CLIP_MEAN)),
        image_std=list(cfg.get("std", CLIP_STD)),
    )


def _is_quick(activation: str) -> bool:
    if activation not in ("gelu", "quick_gelu"):
        raise ValueError(f"open_clip has no activation {activation!r}, only gelu and quick_gelu")
    return activation == "quick_gelu"
