"""Pipelines, and what is put in the place of their text encoders: loaded, checked, and ready to attack."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline

from leaf_diffusion.diffusion.families import FAMILIES, Family, TextEncoderPart, family_of, named_pipeline
from leaf_diffusion.diffusion.readings import sequence_encoder
from leaf_diffusion.diffusion.speed import set_attention, set_layout
from leaf_diffusion.encoders.base import Feature, TextEncoder
from leaf_diffusion.encoders.defences import split_defence
from leaf_diffusion.encoders.features import Readout
from leaf_diffusion.encoders.load import load_defence, load_text_encoder, wrap
from leaf_diffusion.encoders.sequence import SequenceTextEncoder
from leaf_diffusion.encoders.swap import fitting, text_model_for_pipeline, unprojected
from leaf_diffusion.encoders.swap_sequence import exchanged_sequence
from leaf_diffusion.evaluation.t2i.options import Options
from leaf_diffusion.scoring.mean import MeanScorer
from leaf_diffusion.scoring.objectives import Objective, objective_for
from leaf_diffusion.scoring.scorer import AnyScorer, Scorer

WORLD_LABELS = ("original", "leaf", "typo-augmented", "judge", "fare")
KEPT = "original"


@dataclass(frozen=True)
class EncoderName:
    """How an encoder was asked for: its label in every table, where it comes from, the defence before it."""

    label: str
    source: str
    defence: str | None

    @classmethod
    def parse(cls, text: str, *, world: bool) -> EncoderName:
        """ "leaf", "world:leaf", "folder", "LABEL=SOURCE", each with the name of a defence at the end ("+speller",
        "+canonical:FILE") or not."""
        label, equals, source = text.rpartition("=")
        source, defence = split_defence(source)
        suffix = "" if defence is None else f"+{defence.partition(':')[0]}"
        if not source or (equals and not label):
            raise ValueError(f"--encoders: {text!r} names no encoder; write a label, a source or LABEL=SOURCE")
        if world and source in WORLD_LABELS:
            source = f"world:{source}"
        short = source.partition(":")[2] if source.startswith("world:") else Path(source.rstrip("/")).name
        return cls(label or short + suffix, source, defence)


@dataclass(frozen=True)
class Loaded:
    """What is evaluated under one label: a tower for each text encoder of the pipeline, and the same towers without
    their defence (what draws, given the defended prompt). `attacked`: which of them an attack moves, by their places."""

    towers: tuple[TextEncoder, ...]
    bases: tuple[TextEncoder, ...]
    attacked: tuple[int, ...]

    @property
    def encoder(self) -> TextEncoder:
        """The first tower: texts are defended and tokenized by it."""
        return self.towers[0]

    @property
    def base(self) -> TextEncoder:
        return self.bases[0]

    @property
    def has_projection(self) -> bool:
        """Of the CLIPs among them."""
        return all(each.has_projection for each in self.towers if not isinstance(each, SequenceTextEncoder))

    @property
    def fingerprint(self) -> str:
        return _joined(self.towers)

    @property
    def base_fingerprint(self) -> str:
        return _joined(self.bases)

    def scorer(self, objective: Objective, precision: Literal["fp32", "screen"]) -> AnyScorer:
        """The objective on the CLIP of a Stable Diffusion; else its mean over the towers that are attacked, each relative to its
        own clean embedding. Towers that are no CLIPs are asked for a drift of what attention reads of their states."""
        towers = [self.towers[place] for place in self.attacked]
        scorers = [(Scorer(each, objective_for(each, objective), precision=precision), 1.0) for each in towers]
        alone = len(self.towers) == 1 and not isinstance(self.towers[0], SequenceTextEncoder)
        return scorers[0][0] if alone else MeanScorer(scorers)


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
    family, absent = _family(options.pipeline)
    optional = [part for part in family.text_encoders if part.part in family.optional]
    if not options.t5 and all(part.part in absent for part in optional):
        raise ValueError(f"--no-t5: {options.pipeline} has no T5 that can be left out; leave the option out")
    extra: dict[str, bool | None] = {}
    if family.has_filter and not options.world:
        extra = {"safety_checker": None, "requires_safety_checker": False}
    for part in optional:
        if part.part in absent or not options.t5:
            extra |= {part.part: None, part.tokenizer: None}
    pipeline: Any = family.leaf_class().from_pretrained(options.pipeline, dtype=dtype, **extra)
    pipeline = pipeline.to(options.device)
    set_attention(pipeline, options.attention)
    set_layout(pipeline, channels_last=options.channels_last, compiled=options.compile)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _family(source: str) -> tuple[Family, frozenset[str]]:
    """The family of a pipeline's folder or Hub id, and the components that it names without having them.

    One whose index cannot be read is left to its own error, as a Stable Diffusion. ValueError for an unknown class.
    """
    first = next(iter(FAMILIES.values()))
    if (named := named_pipeline(source)) is not None:
        return named[0], frozenset()
    try:
        index = dict(DiffusionPipeline.load_config(source))
    except (OSError, ValueError):
        return first, frozenset()
    try:
        family = family_of(str(index.get("_class_name", "")))
    except ValueError as error:
        raise ValueError(f"--pipeline {source}: {error}") from None
    parts = [part.part for part in family.text_encoders]
    return family, frozenset(part for part in parts if (index.get(part) or [None])[0] is None)


def attacked_feature(
    choice: Literal["auto", "pooled", "projected", "states", "readout"],
    pipeline: object,
    loaded: Mapping[str, Loaded],
    *,
    world: bool,
) -> Feature:
    """What of the embedding the attacks move: what was chosen, or what the pipeline's class has, whatever the encoders bring.

    The world's CLIPs come whole, so there it is the projected embedding. ValueError names the encoder that lacks it.
    """
    family = family_of(pipeline)
    if not family.clips:
        if choice not in ("auto", "readout"):
            raise ValueError(
                f"--feature {choice} is of CLIPs, and a {family.stock} has none: leave it out, and what attention reads of its "
                "token states is attacked"
            )
        return family.attacked
    if choice == "states":
        return family.states
    if choice == "readout":
        return Readout(hidden=family.states)
    feature = choice if choice != "auto" else "projected" if world else family.attacked
    lacking = [label for label, one in loaded.items() if not one.has_projection]
    if feature == "projected" and lacking:
        raise ValueError(
            f"{lacking[0]} has no text projection, so its projected embedding cannot be attacked: give --feature pooled (or "
            "states), which every encoder has"
        )
    return feature


def with_encoder(pipeline: Any, loaded: Loaded) -> Any:
    """The pipeline around other text encoders; the rest is shared."""
    new = {part.part: base for part, base in zip(_places(pipeline), loaded.bases, strict=True)}
    swapped = type(pipeline).from_pipe(pipeline, **new, dtype=pipeline.dtype)
    swapped.set_progress_bar_config(disable=True)
    return swapped


def load_alone(name: EncoderName, options: Options) -> Loaded:
    """An encoder that belongs to no pipeline (a neutral source of attacks)."""
    base = load_text_encoder(name.source, device=options.device, dtype=options.dtype)
    return Loaded((_defended(base, name.defence),), (base,), (0,))


def load_towers(names: Sequence[EncoderName], pipeline: Any, options: Options) -> dict[str, Loaded]:
    """By label the towers that take the pipeline's place; those of one source share one module. Each must fit.

    A source of several towers is "FIRST,SECOND,THIRD"; one that is not named, or named "original", is the pipeline's own.
    """
    places = _places(pipeline)
    names_of = [place.part for place in places]
    if unknown := [part for part in options.attacked_encoders if part not in names_of]:
        raise ValueError(f"--attacked-encoders {unknown[0]}: {options.pipeline} has {', '.join(names_of)}")
    attacked = tuple(
        i for i, part in enumerate(names_of) if not options.attacked_encoders or part in options.attacked_encoders
    )
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
        for source, place in zip(sources, places, strict=True):
            if (source, place.part) not in made:
                made[source, place.part] = _tower(source, name.label, pipeline, place, options)
            bases.append(made[source, place.part])
        loaded[name.label] = Loaded(tuple(_defended(base, name.defence) for base in bases), tuple(bases), attacked)
    return loaded


def _places(pipeline: Any) -> list[TextEncoderPart]:
    """The text encoders that the pipeline really has."""
    return [place for place in family_of(pipeline).text_encoders if getattr(pipeline, place.part, None) is not None]


def _tower(source: str, label: str, pipeline: Any, place: TextEncoderPart, options: Options) -> TextEncoder:
    current, tokenizer = getattr(pipeline, place.part), getattr(pipeline, place.tokenizer)
    if place.kind != "clip":
        return _sequence_tower(source, label, pipeline, place)
    if source == KEPT:
        return wrap(current, tokenizer, name=KEPT)
    base = load_text_encoder(source, device=options.device, dtype=options.dtype)
    try:
        base = fitting(base, current, tokenizer)
        if place.pooled == "projected" and (unprojected(current) or not base.has_projection):
            # the pipeline keeps its projection, so the attack looks at that of this encoder's states
            base = wrap(text_model_for_pipeline(base, current), tokenizer, name=base.name)
    except ValueError as error:
        raise ValueError(
            f"--encoders: {label} does not fit the {place.part} of the pipeline {type(pipeline).__name__}: {error}"
        ) from error
    return base


def _sequence_tower(source: str, label: str, pipeline: Any, place: TextEncoderPart) -> TextEncoder:
    current = getattr(pipeline, place.part)
    try:
        module = current if source == KEPT else exchanged_sequence(place.part, current, source)
        return sequence_encoder(pipeline, place.part, module=module, name=source)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"--encoders: {label} as the {place.part} of the pipeline {type(pipeline).__name__}: {error}"
        ) from error


def _defended(base: TextEncoder, defence: str | None) -> TextEncoder:
    if not defence:
        return base
    if isinstance(base, SequenceTextEncoder):
        encoder: TextEncoder = copy.copy(base)
        encoder.defence = load_defence(defence)
        return encoder
    return load_text_encoder(base.module, tokenizer=base.tokenizer, defence=defence)
