"""Everything a run needs, loaded and checked before the first unit of work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leaf_diffusion.attacks import attack_from_name
from leaf_diffusion.encoders.base import Feature, Hidden, Tower
from leaf_diffusion.encoders.load import load_text_encoder, wrap
from leaf_diffusion.encoders.swap import check_swap
from leaf_diffusion.eval import prompts as prompt_sets
from leaf_diffusion.eval.options import Options
from leaf_diffusion.eval.plan import Plan, make_plan
from leaf_diffusion.eval.prompts import Prompt
from leaf_diffusion.pipelines import LeafStableDiffusionPipeline

WORLD_LABELS = ("original", "leaf", "typo-augmented", "judge", "fare")


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
    """An encoder under evaluation, and the same without its defence (what draws, given the defended prompt)."""

    encoder: Tower
    base: Tower


@dataclass(frozen=True)
class Setup:
    options: Options
    prompts: list[Prompt]
    given_attacks: list[dict[str, Any]]
    pipeline: Any
    encoders: dict[str, Loaded]
    neutral: dict[str, Loaded]
    feature: Feature
    plan: Plan

    def source(self, label: str) -> Tower:
        """The encoder that attacks are searched on."""
        return {**self.encoders, **self.neutral}[label].encoder


def prepare(options: Options) -> Setup:
    """Load and check; ValueError or OSError says what is wrong and what to do."""
    attack_from_name(options.attack)
    given = prompt_sets.read_attacks(options.attacked_prompts) if options.attacked_prompts else []
    prompts = load_prompts(options, given)
    names = [EncoderName.parse(text, world=options.world) for text in options.encoders]
    if len({name.label for name in names}) < len(names):
        raise ValueError(f"--encoders: two encoders share a label: {[n.label for n in names]}; write LABEL=SOURCE")
    if options.output is not None:
        check_writable(options.output)
    pipeline = load_pipeline(options)
    encoders = _load_all(names, pipeline, options)
    neutral = {}
    if options.neutral_source != "none" and "transfer" in options.protocols and not given:
        name = EncoderName.parse(str(options.neutral_source), world=options.world)
        if name.label in encoders:
            raise ValueError(
                f"--neutral-source {name.label} is one of the encoders under evaluation: it is not neutral"
            )
        neutral = _load_all([name], None, options)
    undefended = [name.label for name in names if name.defence is None]
    plan = make_plan(
        prompts,
        list(encoders),
        protocols=options.protocols,
        transfer_sources=[*(undefended or list(encoders))[:2], *neutral],
        ks=options.k,
        seeds=options.seeds,
        given=sorted({(row["source"], row["k"]) for row in given}),
    )
    projected = all(one.encoder.has_projection for one in {**encoders, **neutral}.values())
    feature: Feature = "projected" if projected else "pooled"
    if options.feature == "states":
        feature = Hidden(-1, "all")
    return Setup(options, prompts, given, pipeline, encoders, neutral, feature, plan)


def load_prompts(options: Options, given: Sequence[dict[str, Any]]) -> list[Prompt]:
    """The prompts of the run; with attack sets every set must cover each of them."""
    if options.prompts is not None:
        column, split = options.prompt_column, options.prompt_split
        prompts = prompt_sets.from_file(options.prompts, column, split, every=options.every_caption)
    elif given:
        prompts = [Prompt(text) for text in dict.fromkeys(row["prompt"] for row in given)]
    else:
        prompts = prompt_sets.from_world(options.limit or 0, options.prompt_seed, options.two_objects)
    prompts = prompts[: options.limit]
    for source, k in sorted({(row["source"], row["k"]) for row in given}):
        covered = {row["prompt"] for row in given if (row["source"], row["k"]) == (source, k)}
        missing = [prompt.text for prompt in prompts if prompt.text not in covered]
        if missing:
            raise ValueError(
                f"{options.attacked_prompts}: the set (source {source!r}, k={k}) lacks {len(missing)} of "
                f"{len(prompts)} prompts, the first is {missing[0]!r}"
            )
    return prompts


def check_writable(folder: Path) -> None:
    """OSError where `folder` cannot be made or written."""
    nearest = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"--output {folder}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"--output {folder}: no permission to write in {nearest}; choose another folder")


def check_space(setup: Setup) -> None:
    """OSError where the disk cannot hold the run's pictures (at most: uncompressed, none of them drawn yet)."""
    folder = (setup.options.output or Path("runs")).absolute()
    nearest = next(path for path in [folder, *folder.parents] if path.exists())
    pipeline, options = setup.pipeline, setup.options
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    needed = sum(1 for _ in setup.plan.pictures()) * 3 * (options.height or side) * (options.width or side)
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise OSError(
            f"{nearest}: {free / 1e6:.0f} MB free, the pictures may need {needed / 1e6:.0f} MB; choose another --output"
        )


def load_pipeline(options: Options) -> Any:
    """The pipeline in the evaluation's precision, without a safety checker: the model is measured, not its filter."""
    dtype = getattr(torch, options.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"--dtype {options.dtype}: use float32, float16 or bfloat16")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: this torch sees no CUDA device; use --device cpu")
    extra: dict[str, Any] = {} if options.world else {"safety_checker": None, "requires_safety_checker": False}
    pipeline = LeafStableDiffusionPipeline.from_pretrained(options.pipeline, dtype=dtype, **extra).to(options.device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _load_all(names: Sequence[EncoderName], pipeline: Any, options: Options) -> dict[str, Loaded]:
    """Encoders by label; those of one source share one module. With a pipeline each must fit it."""
    bases: dict[str, Tower] = {}
    loaded = {}
    for name in names:
        if name.source not in bases:
            if name.source == "original" and pipeline is not None:
                base = wrap(pipeline.text_encoder, pipeline.tokenizer, name="original")
            else:
                base = load_text_encoder(name.source, device=options.device, dtype=options.dtype)
            if pipeline is not None:
                _fits(pipeline, name.label, base.module, base.tokenizer)
            bases[name.source] = base
        base = bases[name.source]
        encoder: Tower = base
        if name.defence:
            encoder = load_text_encoder(base.module, tokenizer=base.tokenizer, defence=name.defence)
        loaded[name.label] = Loaded(encoder, base)
    return loaded


def _fits(pipeline: Any, label: str, module: nn.Module, tokenizer: Any) -> None:
    try:
        check_swap(pipeline.text_encoder, module, pipeline.tokenizer, tokenizer)
    except ValueError as error:
        raise ValueError(f"--encoders: {label} does not fit the pipeline {type(pipeline).__name__}: {error}") from error
