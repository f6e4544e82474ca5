"""What each pipeline class is made of: its text encoders, what the denoiser is given of them, and its Leaf class.

A table by the name of the stock class, so that nothing here imports a pipeline. Read in diffusers 0.42.1.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from leaf_diffusion.diffusion import templates
from leaf_diffusion.encoders.base import Feature, Hidden
from leaf_diffusion.encoders.features import Readout
from leaf_diffusion.tokens.reading import Reading

if TYPE_CHECKING:
    from diffusers import ModelMixin


@dataclass(frozen=True)
class TextEncoderPart:
    """A text encoder of a pipeline class.

    `part`, `tokenizer`: names of the components. Of a CLIP: `layer`, the token states that the denoiser is given, as `Hidden`
    counts them (-1 after the final norm), None where it is given none; `pooled`, what it is given of the pooled state, None
    for nothing; `attends_padding`, whether the states behind end-of-text are among them, unmasked. Of a T5 or a language model
    ("decoder") `reading` says all that, as a function of the pipeline.
    """

    part: str
    tokenizer: str
    kind: Literal["clip", "t5", "decoder"] = "clip"
    layer: int | None = -1
    pooled: Literal["pooled", "projected"] | None = None
    attends_padding: bool = True
    reading: Callable[[Any], Reading] | None = None

    @property
    def attacked(self) -> Feature:
        """What stands for the encoder in an attack: of a CLIP the pooled feature that the class has, whatever projection an
        exchanged encoder brings; of others what attention reads of the states."""
        return Readout() if self.kind != "clip" else self.pooled or "pooled"

    @property
    def states(self) -> Hidden:
        """All token states that the denoiser is given of a CLIP; ValueError where it is given none."""
        if self.layer is None:
            raise ValueError(f"the denoiser is given no token states of the {self.part}, its pooled state alone")
        return Hidden(self.layer, "all" if self.attends_padding else "content")


@dataclass(frozen=True)
class Family:
    """A stock pipeline class: its text encoders in their order, its denoiser, and its Leaf class as "module:class".

    `optional`: the text encoders that it runs without. `has_filter`: whether it has a safety checker. `side`: pixels of an
    image unless told otherwise, where neither the denoiser nor the pipeline says. `true_cfg`: whether guidance is its argument
    `true_cfg_scale`, and takes a negative prompt.
    """

    stock: str
    leaf: str
    text_encoders: tuple[TextEncoderPart, ...]
    denoiser: str = "unet"
    optional: tuple[str, ...] = ()
    has_filter: bool = False
    side: int | None = None
    true_cfg: bool = False

    @property
    def clips(self) -> tuple[TextEncoderPart, ...]:
        """The text encoders that are CLIPs."""
        return tuple(each for each in self.text_encoders if each.kind == "clip")

    @property
    def attacked(self) -> Feature:
        """The one pooled feature that all CLIPs of the class have; where it has none, what stands for its text encoders."""
        features = {each.attacked for each in self.clips or self.text_encoders}
        return features.pop() if len(features) == 1 else "pooled"

    @property
    def states(self) -> Hidden:
        """The token states of the CLIPs that the denoiser is given; ValueError where it is given none."""
        if not self.clips:
            raise ValueError(f"a {self.stock} has no CLIP, whose token states stand at fixed places")
        return self.clips[0].states

    def leaf_class(self) -> Any:
        """The Leaf class itself, imported now."""
        return _resolved(self.leaf)

    def part(self, name: str) -> TextEncoderPart:
        return next(each for each in self.text_encoders if each.part == name)


_LEAF = "leaf_diffusion.pipelines:Leaf"
_FIRST, _SECOND = ("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")
PROVENANCE = ("transformers_version", "dtype", "torch_dtype", "architectures")
"""Settings that say how a component was stored."""


def _alone(stock: str, kind: Literal["t5", "decoder"], reading: Callable[[Any], Reading], **more: Any) -> Family:
    """A transformer pipeline that reads with one T5 or language model."""
    part = TextEncoderPart(*_FIRST, kind=kind, reading=reading)
    return Family(stock, f"{_LEAF}{stock}", (part,), denoiser="transformer", **more)


FAMILIES: dict[str, Family] = {
    family.stock: family
    for family in (
        Family(
            "StableDiffusionPipeline",
            f"{_LEAF}StableDiffusionPipeline",
            (TextEncoderPart(*_FIRST),),
            has_filter=True,
        ),
        Family(
            "StableDiffusionXLPipeline",
            f"{_LEAF}StableDiffusionXLPipeline",
            (TextEncoderPart(*_FIRST, layer=-2), TextEncoderPart(*_SECOND, layer=-2, pooled="projected")),
        ),
        Family(
            "StableDiffusion3Pipeline",
            f"{_LEAF}StableDiffusion3Pipeline",
            (
                TextEncoderPart(*_FIRST, layer=-2, pooled="projected"),
                TextEncoderPart(*_SECOND, layer=-2, pooled="projected"),
                TextEncoderPart("text_encoder_3", "tokenizer_3", kind="t5", reading=templates.padded_t5),
            ),
            denoiser="transformer",
            optional=("text_encoder_3",),
        ),
        Family(
            "FluxPipeline",
            f"{_LEAF}FluxPipeline",
            (
                TextEncoderPart(*_FIRST, layer=None, pooled="pooled"),
                TextEncoderPart(*_SECOND, kind="t5", reading=templates.padded_t5),
            ),
            denoiser="transformer",
        ),
        _alone("PixArtAlphaPipeline", "t5", templates.pixart),
        _alone("PixArtSigmaPipeline", "t5", templates.pixart),
        _alone("SanaPipeline", "decoder", templates.sana),
        _alone("Lumina2Pipeline", "decoder", templates.lumina),
        _alone("ZImagePipeline", "decoder", templates.z_image, side=1024),
        _alone("QwenImagePipeline", "decoder", templates.qwen_image, true_cfg=True),
        _alone("Flux2KleinPipeline", "decoder", templates.klein),
    )
}


_NAMED = {"world": ("StableDiffusionPipeline", "leaf_diffusion.world.paths:pipeline_path")}
"""Pipelines by name: what they are, and a function that knows their folder."""


def named_pipeline(source: str) -> tuple[Family, Path] | None:
    """Family and folder of a pipeline with a name of its own ("world"); None for folders and Hub ids."""
    if source not in _NAMED:
        return None
    stock, function = _NAMED[source]
    return FAMILIES[stock], Path(_resolved(function)())


def _resolved(name: str) -> Any:
    """What "module:attribute" names; imported when used, as it belongs to layers above this one."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def family_of(pipeline: object) -> Family:
    """The family of a pipeline, of a pipeline class or of a class name, stock or Leaf. ValueError names what is known."""
    kind = pipeline if isinstance(pipeline, type) else type(pipeline)
    names = [pipeline] if isinstance(pipeline, str) else [each.__name__ for each in kind.__mro__]
    for name in names:
        if (family := FAMILIES.get(name.removeprefix("Leaf"))) is not None:
            return family
    raise ValueError(f"{names[0] or 'no class'} is no pipeline class that is known here; known: {', '.join(FAMILIES)}")


def denoiser_of(pipeline: object) -> ModelMixin:
    """The UNet or transformer of a pipeline, of whatever class. ValueError where it has neither."""
    for name in ("unet", "transformer"):
        if (found := getattr(pipeline, name, None)) is not None:
            return found
    raise ValueError(f"{type(pipeline).__name__} has neither a unet nor a transformer")


def native_side(pipeline: Any) -> int:
    """Height and width in pixels of the images that a pipeline draws unless told otherwise."""
    latents = denoiser_of(pipeline).config.get("sample_size") or getattr(pipeline, "default_sample_size", None)
    side = family_of(pipeline).side if latents is None else latents * pipeline.vae_scale_factor
    if side is None:
        raise ValueError(f"how large the images of a {type(pipeline).__name__} are is not known: give height and width")
    return int(side)


def frozen_parts(pipeline: object) -> list[nn.Module]:
    """What all exchanged encoders share, and what decides the images besides them: denoiser and VAE."""
    parts = [denoiser_of(pipeline), getattr(pipeline, "vae", None)]
    return [part for part in parts if isinstance(part, nn.Module)]


def configuration(pipeline: object) -> dict[str, object]:
    """What decides the images and is no weight, as JSON values: the pipeline's own settings, the configurations of
    `frozen_parts` and of the scheduler. (Text encoders have fingerprints of their own, tokenizers among them.)"""
    parts = (family_of(pipeline).denoiser, "vae", "scheduler")
    return {"pipeline": _settings(pipeline), **{name: _settings(getattr(pipeline, name, None)) for name in parts}}


def _settings(part: object) -> object:
    """The configuration of a component, without what says where it came from."""
    config = getattr(part, "config", None)
    if config is None:
        return None
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    # a pipeline's components are pairs of a library and a class: each is looked at for itself
    kept = {
        name: value
        for name, value in values.items()
        if not name.startswith("_") and name not in PROVENANCE and not isinstance(value, tuple)
    }
    return {"class": type(part).__name__, **json.loads(json.dumps(kept, sort_keys=True, default=str))}
