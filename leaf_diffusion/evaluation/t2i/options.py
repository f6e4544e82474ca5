"""What the text-to-image evaluation can be told: defaults < `--config file.yaml` < the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

from leaf_diffusion import command_line
from leaf_diffusion.evaluation.options import AttackOptions, MeasuredPromptOptions, RunOptions
from leaf_diffusion.evaluation.t2i.feature_spaces import check_name

Protocol = Literal["adaptive", "transfer"]
WORLD_ENCODERS = ("original", "leaf", "typo-augmented", "original+speller")


@dataclass(frozen=True, kw_only=True)
class WorldPromptOptions(MeasuredPromptOptions):
    """Prompts of a file, or of the world."""

    prompt_seed: int = 0
    """Seed of the world's prompts."""
    two_objects: float = 0.0
    """Share of two-object prompts among the world's."""
    three_objects: float = 0.0
    """Share of three-object prompts among them."""
    counted: float = 0.0
    """Share of counts ("two red cats") among those of several objects."""


@dataclass(frozen=True, kw_only=True)
class AttackedPromptOptions(WorldPromptOptions):
    """Prompts, or attack sets of theirs."""

    attacked_prompts: Path | None = None
    """Attack sets (JSONL) to use instead of searching; without --prompts their prompts are used."""
    save_attacked_prompts: Path | None = None
    """Also write the attack sets of this run to this JSONL file."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How images are drawn."""

    help_group: ClassVar[str] = "images"

    pipeline: str = "world"
    """A diffusers pipeline of a family that is known here (docs/guide/which-encoders.md: Stable Diffusion, SDXL, SD3, FLUX, PixArt,
    Sana, Lumina 2, Z-Image, Qwen-Image, FLUX.2 klein): "world", a folder or a Hub id."""
    t5: bool = True
    """Whether a Stable Diffusion 3 keeps its T5, which may hide what is done to its CLIPs (--no-t5)."""
    seeds: int = 1
    """Images of each prompt, from so many noises."""
    steps: int | None = None
    """Denoising steps. Default: 15 in the world, else 50."""
    guidance: float | None = None
    """Classifier-free guidance. Default: 3 in the world, else 7.5."""
    height: int | None = None
    width: int | None = None
    batch_size: int = 32
    """Images drawn at once."""
    dtype: str = "float32"
    attention: Literal["sdpa", "xformers", "auto"] = "sdpa"
    """Kernels of the denoiser's attention. xformers needs its package and a CUDA device; auto takes it where it runs and
    warns where it does not. The run keeps which of them drew its images."""
    channels_last: bool = False
    """Channels-last memory for the convolutions; what it gains depends on the model and the machine."""
    compile: bool = False
    """torch.compile for the denoiser: minutes at the first image (and at every other batch size), faster ones after."""


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """What images are measured with."""

    help_group: ClassVar[str] = "measures"
    renamed: ClassVar[Mapping[str, str]] = {"--real-pictures": "--real-images"}

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


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions, JudgeOptions, ImageOptions, AttackOptions, AttackedPromptOptions):
    """Attack the text encoders of a diffusion model, draw every prompt with each of them, and report what was lost.

    Without arguments: the embedded world, offline, a few minutes. A second call continues where the first stopped.
    """

    help_group: ClassVar[str] = "the comparison"
    help_first: ClassVar[tuple[str, ...]] = ("pipeline", "encoders", "prompts", "limit", "attack", "k", "output")

    encoders: tuple[str, ...] = ()
    """Labels, sources ("world:leaf", a folder, a Hub id) or LABEL=SOURCE; "+speller" adds spelling correction;
    "original" is the pipeline's own. The first is the baseline. Default in the world: original leaf typo-augmented
    original+speller, elsewhere: original original+speller. Where there are several text encoders a source is
    "FIRST,SECOND,THIRD", and what is not named, or named "original", stays."""
    attacked_encoders: tuple[str, ...] = ()
    """The text encoders that attacks move, by the names of the components (text_encoder, text_encoder_2). Default: all."""
    limit: int | None = None
    """Number of prompts. Default: 32 of the world's, all of a file's."""
    protocols: tuple[Protocol, ...] = ("adaptive", "transfer")
    """adaptive: each encoder faces the attack on itself. transfer: all face the same attacked prompts, found on the
    first encoder, on the second (speller aside) and on the neutral source. Clean images are always made."""
    neutral_source: str | None = None
    """An encoder that only serves to find attacked prompts. Default in the world: world:judge; "none" for none."""

    def __post_init__(self) -> None:
        def require(right: bool, what: str) -> None:
            if not right:
                raise ValueError(what)

        super().__post_init__()
        require(len(set(self.protocols)) == len(self.protocols), f"--protocols names one twice: {self.protocols}")
        for name in ("limit", "seeds", "batch_size", "steps", "height", "width"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} must be at least 1, got {value}")
        for name in ("height", "width"):
            value = getattr(self, name)
            require(value is None or value % 8 == 0, f"--{name} must be a multiple of 8, got {value}")
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

    def resolved(self) -> Self:
        """Every default that depends on the pipeline, filled in."""
        world, own_prompts = self.world, self.prompts is None and self.attacked_prompts is None
        if own_prompts and not world:
            raise ValueError(
                f"--pipeline {self.pipeline} needs --prompts FILE (one prompt a line) or --attacked-prompts"
            )
        given = super().resolved()
        return dataclasses.replace(
            given,
            encoders=given.encoders or (WORLD_ENCODERS if world else ("original", "original+speller")),
            limit=32 if given.limit is None and own_prompts else given.limit,
            neutral_source=given.neutral_source or ("world:judge" if world else "none"),
            steps=given.steps or (15 if world else 50),
            guidance=(3.0 if world else 7.5) if given.guidance is None else given.guidance,
            distance_features=given.distance_features or ("judge" if world else "auto"),
        )


def parse(argv: Sequence[str] | None = None) -> Options:
    """The options of a command line; ValueError for what cannot be understood and for impossible values."""
    return command_line.parse(Options, argv, command="evaluate").resolved()
