"""Pipelines of one or two CLIP text encoders, and what is put in their place: loaded, checked, and ready to attack."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from torch import nn

from leaf_diffusion.diffusion.pipeline import PARTS
from leaf_diffusion.diffusion.speed import set_attention, set_layout
from leaf_diffusion.encoders.base import Feature, Hidden, TextEncoder
from leaf_diffusion.encoders.load import load_text_encoder, wrap
from leaf_diffusion.encoders.swap import check_swap
from leaf_diffusion.evaluation.t2i.options import Options
from leaf_diffusion.pipelines import (
    LeafStableDiffusion3Pipeline,
    LeafStableDiffusionPipeline,
    LeafStableDiffusionXLPipeline,
)
from leaf_diffusion.scoring.mean import MeanScorer
from leaf_diffusion.scoring.objectives import Objective
from leaf_diffusion.scoring.scorer import AnyScorer, Scorer

WORLD_LABELS = ("original", "leaf", "typo-augmented", "judge", "fare")
KINDS = {
    "StableDiffusionPipeline": LeafStableDiffusionPipeline,
    "StableDiffusionXLPipeline": LeafStableDiffusionXLPipeline,
    "StableDiffusion3Pipeline": LeafStableDiffusion3Pipeline,
}
KEPT = "original"


@dataclass(frozen=True)
class EncoderName:
    """How an encoder was asked for: its label in every table, where it comes from, the defence before it."""

    label: str
    source: str
    defence: str | None

    @classmethod
    def parse(cls, text: str, *, world: bool) -> EncoderName:
        """ "leaf", "world:leaf", "folder", "LABEL=SOURCE", each with "+speller" at the end or not."""
        label, equals, source = text.rpartition("=")
        body, plus, defence = source.rpartition("+")
        if plus and defence == "speller":
            source, suffix = body, "+speller"
        else:
            defence, suffix = "", ""
        if not source or (equals and not label):
            raise ValueError(f"--encoders: {text!r} names no encoder; write a label, a source or LABEL=SOURCE")
        if world and source in WORLD_LABELS:
            source = f"world:{source}"
        short = source.partition(":")[2] if source.startswith("world:") else Path(source.rstrip("/")).name
        return cls(label or short + suffix, source, defence or None)


@dataclass(frozen=True)
class Loaded:
    """What is evaluated under one label: a tower for each text encoder of the pipeline, and the same towers without
    their defence (what draws, given the defended prompt)."""

    towers: tuple[TextEncoder, ...]
    bases: tuple[TextEncoder, ...]

    @property
    def encoder(self) -> TextEncoder:
        """The first tower: texts are defended and tokenized by it."""
        return self.towers[0]

    @property
    def base(self) -> TextEncoder:
        return self.bases[0]

    @property
    def has_projection(self) -> bool:
        return all(tower.has_projection for tower in self.towers)

    @property
    def fingerprint(self) -> str:
        return _joined(self.towers)

    @property
    def base_fingerprint(self) -> str:
        return _joined(self.bases)

    def scorer(self, objective: Objective, precision: Literal["fp32", "screen"]) -> AnyScorer:
        """The objective on the tower; with two of them its mean, each relative to its own clean embedding."""
        scorers = [(Scorer(tower, objective, precision=precision), 1.0) for tower in self.towers]
        return scorers[0][0] if len(scorers) == 1 else MeanScorer(scorers)


def _joined(towers: Sequence[TextEncoder]) -> str:
    prints = [tower.fingerprint for tower in towers]
    return prints[0] if len(prints) == 1 else hashlib.sha256("\n".join(prints).encode()).hexdigest()


def load_pipeline(options: Options) -> Any:
    """The Leaf pipeline of its kind, in the evaluation's precision, without a safety checker: the model is measured, not
    its filter."""
    dtype = getattr(torch, options.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"--dtype {options.dtype}: use float32, float16 or bfloat16")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: this torch sees no CUDA device; use --device cpu")
    kind, index = _kind(options.pipeline)
    extra: dict[str, Any] = {}
    if kind is LeafStableDiffusionPipeline and not options.world:
        extra = {"safety_checker": None, "requires_safety_checker": False}
    has_t5 = kind is LeafStableDiffusion3Pipeline and (index.get("text_encoder_3") or [None])[0] is not None
    if not options.t5 and not has_t5:
        raise ValueError(f"--no-t5: {options.pipeline} has no T5; leave the option out")
    if kind is LeafStableDiffusion3Pipeline and not (has_t5 and options.t5):
        extra = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline: Any = kind.from_pretrained(options.pipeline, dtype=dtype, **extra)
    pipeline = pipeline.to(options.device)
    set_attention(pipeline, options.attention)
    set_layout(pipeline, channels_last=options.channels_last, compiled=options.compile)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _kind(source: str) -> tuple[Any, dict[str, Any]]:
    """The Leaf class of a pipeline's folder or Hub id, and its index; one that cannot be read is left to its own error."""
    if source == "world":
        return LeafStableDiffusionPipeline, {}
    try:
        index = dict(DiffusionPipeline.load_config(source))
    except (OSError, ValueError):
        return LeafStableDiffusionPipeline, {}
    name = str(index.get("_class_name", "")).removeprefix("Leaf")
    if name not in KINDS:
        raise ValueError(f"--pipeline {source} is a {name or 'folder without a class'}; known: {', '.join(KINDS)}")
    return KINDS[name], index


def denoiser(pipeline: Any) -> nn.Module:
    """The UNet, or the transformer of a Stable Diffusion 3."""
    found: nn.Module = getattr(pipeline, "unet", None) or pipeline.transformer
    return found


def frozen_parts(pipeline: Any) -> list[nn.Module]:
    """What every encoder under evaluation shares, and what decides the images besides it."""
    t5 = getattr(pipeline, "text_encoder_3", None)
    return [denoiser(pipeline), pipeline.vae, *([t5] if t5 is not None else [])]


def seen_feature(pipeline: Any) -> Hidden:
    """The token states that the denoiser is given, padding included: the last ones, the last but one in XL and SD3."""
    return Hidden(-1 if isinstance(pipeline, LeafStableDiffusionPipeline) else -2, "all")


def common_feature(loaded: Sequence[Loaded]) -> Feature:
    """The pooled embedding that all have: projected, unless a tower has no projection."""
    return "projected" if all(one.has_projection for one in loaded) else "pooled"


def with_encoder(pipeline: Any, loaded: Loaded) -> Any:
    """The pipeline around other text encoders; the rest is shared."""
    new = {part: base for (part, _), base in zip(PARTS, loaded.bases, strict=False)}
    swapped = type(pipeline).from_pipe(pipeline, **new, dtype=pipeline.dtype)
    swapped.set_progress_bar_config(disable=True)
    return swapped


def load_alone(name: EncoderName, options: Options) -> Loaded:
    """An encoder that belongs to no pipeline (a neutral source of attacks)."""
    base = load_text_encoder(name.source, device=options.device, dtype=options.dtype)
    return Loaded((_defended(base, name.defence),), (base,))


def load_towers(names: Sequence[EncoderName], pipeline: Any, options: Options) -> dict[str, Loaded]:
    """By label the towers that take the pipeline's place; those of one source share one module. Each must fit.

    A source of two towers is "FIRST,SECOND"; a tower that is not named, or named "original", is the pipeline's own.
    """
    places = [(part, reader) for part, reader in PARTS if getattr(pipeline, part, None) is not None]
    made: dict[tuple[str, str], TextEncoder] = {}
    loaded = {}
    for name in names:
        sources = name.source.split(",") if len(places) > 1 else [name.source]
        if len(sources) > len(places):
            raise ValueError(
                f"--encoders {name.label}: {len(sources)} sources for the pipeline's {len(places)} encoders"
            )
        sources += [KEPT] * (len(places) - len(sources))
        bases = []
        for source, (part, reader) in zip(sources, places, strict=True):
            if (source, part) not in made:
                made[source, part] = _tower(source, name.label, pipeline, part, reader, options)
            bases.append(made[source, part])
        loaded[name.label] = Loaded(tuple(_defended(base, name.defence) for base in bases), tuple(bases))
    return loaded


def _tower(source: str, label: str, pipeline: Any, part: str, reader: str, options: Options) -> TextEncoder:
    current, tokenizer = getattr(pipeline, part), getattr(pipeline, reader)
    own = source == KEPT
    base = (
        wrap(current, tokenizer, name=KEPT)
        if own
        else load_text_encoder(source, device=options.device, dtype=options.dtype)
    )
    try:
        check_swap(current, base.module, tokenizer, base.tokenizer)
    except ValueError as error:
        raise ValueError(
            f"--encoders: {label} does not fit the {part} of the pipeline {type(pipeline).__name__}: {error}"
        ) from error
    return base


def _defended(base: TextEncoder, defence: str | None) -> TextEncoder:
    if not defence:
        return base
    encoder: TextEncoder = load_text_encoder(base.module, tokenizer=base.tokenizer, defence=defence)
    return encoder
