"""What the text-to-image evaluation can be told: defaults < `--config file.yaml` < the command line."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
import yaml

from leaf_diffusion.evaluation.t2i.feature_spaces import check_name

Protocol = Literal["adaptive", "transfer"]
WORLD_ENCODERS = ("original", "leaf", "typo-augmented", "original+speller")


@dataclass(frozen=True)
class Options:
    """Attack the text encoders of a diffusion model, draw every prompt with each of them, and report what was lost.

    Without arguments: the embedded world, offline, a few minutes. A second call continues where the first stopped.
    """

    pipeline: str = "world"
    """A diffusers Stable Diffusion, SDXL, SD3 or FLUX: "world", a folder or a Hub id."""
    encoders: tuple[str, ...] = ()
    """Labels, sources ("world:leaf", a folder, a Hub id) or LABEL=SOURCE; "+speller" adds spelling correction;
    "original" is the pipeline's own. The first is the baseline. Default in the world: original leaf typo-augmented
    original+speller, elsewhere: original original+speller. Where there are two text encoders a source is
    "FIRST,SECOND", and what is not named, or named "original", stays."""
    t5: bool = True
    """Whether a Stable Diffusion 3 keeps its T5, which may hide what is done to its CLIPs (--no-t5)."""
    prompts: Path | None = None
    """Text (one prompt a line), JSONL, CSV, TSV (PartiPrompts), Parquet, COCO captions, the Karpathy split, Flickr30k's
    token file, a pattern of such files, or dataset:NAME of Hugging Face datasets. Default: the world's own prompts,
    whose images can be judged exactly."""
    prompt_column: str | None = None
    """Where the prompts stand in records. Default: the first of prompt, caption, text, raw, sentence."""
    prompt_split: str | None = None
    """Only prompts of this split, where the file tells one ("test" of a Karpathy split)."""
    every_caption: bool = False
    """Whether every caption of an image is a prompt; otherwise its first."""
    attacked_prompts: Path | None = None
    """Attack sets (JSONL) to use instead of searching; without --prompts their prompts are used."""
    save_attacked_prompts: Path | None = None
    """Also write the attack sets of this run to this JSONL file."""
    prompt_seed: int = 0
    """Seed of the world's prompts."""
    two_objects: float = 0.0
    """Share of two-object prompts among the world's."""
    three_objects: float = 0.0
    """Share of three-object prompts among them."""
    counted: float = 0.0
    """Share of counts ("two red cats") among those of several objects."""
    limit: int | None = None
    """Number of prompts. Default: 32 of the world's, all of a file's."""
    attack: str = "charmer"
    """charmer, leaf, exhaustive (k=1 only), random-typos, tokens (whole tokens substituted); or everyday noise: keyboard,
    ocr, swapped-letters, missing-spaces, homoglyphs, punctuation, at random or, with worst- before the name, searched."""
    k: tuple[int, ...] = (1, 2)
    """Numbers of character edits."""
    n_positions: int = 20
    """Positions that Charmer keeps a round."""
    constraint: Literal["no-new-words", "published", "none"] = "no-new-words"
    objective: Literal["l2", "cosine"] = "l2"
    """What the attacker maximises: the drift of the prompt's embedding, squared L2 or 1 - cosine."""
    feature: Literal["auto", "pooled", "projected", "states"] = "auto"
    """What of the embedding drifts: pooled, the final state at end-of-text; projected, that in the joint space with images,
    which TextFARE and the paper's attacks look at; states, all 77 token states, padding included, which a Stable
    Diffusion's denoiser is given. auto: projected in the world and where every text encoder of the pipeline's class has a
    projection (SD3), else pooled, so that it does not depend on which encoders are compared."""
    precision: Literal["fp32", "screen"] = "fp32"
    """screen: candidates are scored in bfloat16 first, the best again in full; faster, and nearly always the same."""
    attack_seed: int = 0
    """Seed of the random attacks (leaf, random-typos)."""
    seeds: int = 1
    """Images of each prompt, from so many noises."""
    protocols: tuple[Protocol, ...] = ("adaptive", "transfer")
    """adaptive: each encoder faces the attack on itself. transfer: all face the same attacked prompts, found on the
    first encoder, on the second (speller aside) and on the neutral source. Clean images are always made."""
    neutral_source: str | None = None
    """An encoder that only serves to find attacked prompts. Default in the world: world:judge; "none" for none."""
    steps: int | None = None
    """Denoising steps. Default: 15 in the world, else 50."""
    guidance: float | None = None
    """Classifier-free guidance. Default: 3 in the world, else 7.5."""
    height: int | None = None
    width: int | None = None
    batch_size: int = 32
    """Images drawn at once."""
    clip_score_model: str | None = None
    """What measures CLIPScore, never an attacked model: an open_clip name ("ViT-B-16/openai") or a CLIP folder or Hub
    id. Default: the world's judge, elsewhere none (CLIPScore, KID, CMMD and Frechet are then left out)."""
    real_images: Path | None = None
    """A folder of real images (sub-folders too) for KID, CMMD and the Frechet distance. Default in the world: images it draws."""
    distance_features: str | None = None
    """What KID and the Frechet distance compare; its name stands beside every figure (CMMD keeps to the CLIP that judges).
    judge: that CLIP's image features. inception: those of the FID, from a converted file in ~/.cache/leaf_diffusion, or
    inception:FILE. dinov2: DINOv2-L, or dinov2:FOLDER (or Hub id). auto: Inception or DINOv2 where their weights are on
    this machine, else the judge. Default: judge in the world, elsewhere auto."""
    swap_cost: Path | None = None
    """The folder of a `leaf-diffusion swap-cost` run of the same pipeline and encoders: its figures stand in the report, in
    "What a swap costs", beside those of this run's clean prompts."""
    output: Path | None = None
    """The run's folder. Default: runs/ and a name that follows from what the run is."""
    strict: bool = False
    """One prompt, image and score at a time, deterministic kernels, no TF32, one CPU thread: the same bits again on the
    same kind of machine, whatever was resumed or shared, and slower."""
    share: bool = False
    """Work on the run's folder together with other processes that are given the same command; `accelerate launch` and
    `torchrun` need no flag."""
    device: str = "cpu"
    dtype: str = "float32"
    attention: Literal["sdpa", "xformers", "auto"] = "sdpa"
    """Kernels of the denoiser's attention. xformers needs its package and a CUDA device; auto takes it where it runs and
    warns where it does not. The run keeps which of them drew its images."""
    channels_last: bool = False
    """Channels-last memory for the convolutions; what it gains depends on the model and the machine."""
    compile: bool = False
    """torch.compile for the denoiser: minutes at the first image (and at every other batch size), faster ones after."""
    dry_run: bool = False
    """Load, check, run one prompt through everything, and say what the run would do and how long it would take."""
    config: Path | None = None
    """A YAML file with any of these options (underscores in names); the command line goes over it."""

    def __post_init__(self) -> None:
        def require(right: bool, what: str) -> None:
            if not right:
                raise ValueError(what)

        require(len(self.k) > 0, "--k needs at least one number of edits")
        require(min(self.k) >= 0, f"--k counts character edits and cannot be negative, got {min(self.k)}")
        require(len(set(self.k)) == len(self.k), f"--k names a number twice: {self.k}")
        require(len(set(self.protocols)) == len(self.protocols), f"--protocols names one twice: {self.protocols}")
        for name in ("limit", "seeds", "n_positions", "batch_size", "steps", "height", "width"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} must be at least 1, got {value}")
        for name in ("height", "width"):
            value = getattr(self, name)
            require(value is None or value % 8 == 0, f"--{name} must be a multiple of 8, got {value}")
        require(self.attack != "exhaustive" or max(self.k) <= 1, "--attack exhaustive is exact for --k 1 only")
        for name in ("two_objects", "three_objects", "counted"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"--{name.replace('_', '-')} is a share between 0 and 1, got {value}")
        several = self.two_objects + self.three_objects
        require(several <= 1, f"--two-objects and --three-objects are shares of one whole, got {several:g} together")
        if self.distance_features is not None:
            check_name(self.distance_features)
        require(self.guidance is None or self.guidance >= 0, f"--guidance cannot be negative, got {self.guidance}")

    @property
    def world(self) -> bool:
        return self.pipeline == "world"

    def resolved(self) -> Options:
        """Every default that depends on the pipeline, filled in."""
        world, own_prompts = self.world, self.prompts is None and self.attacked_prompts is None
        if own_prompts and not world:
            raise ValueError(
                f"--pipeline {self.pipeline} needs --prompts FILE (one prompt a line) or --attacked-prompts"
            )
        device = self.device
        if device == "cuda" and "LOCAL_RANK" in os.environ:  # one GPU a process of a launcher
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        fill: dict[str, Any] = {
            "encoders": WORLD_ENCODERS if world else ("original", "original+speller"),
            "limit": 32 if own_prompts else None,
            "neutral_source": "world:judge" if world else "none",
            "steps": 15 if world else 50,
            "guidance": 3.0 if world else 7.5,
            "distance_features": "judge" if world else "auto",
        }
        return dataclasses.replace(
            self, device=device, **{name: value for name, value in fill.items() if getattr(self, name) in (None, ())}
        )


def parse(argv: Sequence[str] | None = None) -> Options:
    """The options of a command line; SystemExit as argparse does it, ValueError for impossible values."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    known, _ = first.parse_known_args(argv)
    default = Options() if known.config is None else from_yaml(known.config)
    options: Options = tyro.cli(Options, args=argv, default=default, prog="leaf-diffusion evaluate")
    return options.resolved()


def from_yaml(path: Path) -> Options:
    """Options of a YAML file; ValueError names unknown ones and values of a wrong type."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no YAML that can be read: {' '.join(str(error).split())[:300]}") from error
    values = {} if values is None else values
    fields = {field.name: field for field in dataclasses.fields(Options)}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of options, got a {type(values).__name__}")
    if wrong := [name[:40] if isinstance(name, str) else type(name).__name__ for name in values if name not in fields]:
        raise ValueError(f"{path}: unknown options {wrong[:12]}; known: {', '.join(fields)}")
    arguments: list[str] = []
    for name, value in sorted(values.items(), key=lambda item: isinstance(item[1], list)):
        arguments += _arguments(name, value, path, switch=isinstance(fields[name].default, bool))
    try:
        parsed: Options = tyro.cli(Options, args=arguments, console_outputs=False)
    except SystemExit as error:
        raise ValueError(f"{path}: a value does not fit its option: {' '.join(arguments)[:300]}") from error
    return dataclasses.replace(parsed, config=path)


def _arguments(name: str, value: Any, path: Path, *, switch: bool) -> list[str]:
    """A value of a file as the command line spells it."""
    flag = name.replace("_", "-")
    if switch and isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    # only plain values: aliases of aliases (&a [*a, *a]) would be written out, twice as long at each level
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, (dict, list, tuple, set, bytes)) for item in items):
        raise ValueError(f"{path}: {name} takes a value or a list of values, no deeper structure")
    try:
        words = [str(item) for item in items]
    except ValueError as error:  # a hexadecimal number of thousands of digits
        raise ValueError(f"{path}: {name}: {error}") from error
    if isinstance(value, list) and any(isinstance(item, str) and item.startswith("-") for item in items):
        raise ValueError(f"{path}: {name} holds a text that begins with -, which would be read as an option: {words}")
    return [f"--{flag}", *words] if isinstance(value, list) else [f"--{flag}={words[0]}"]
