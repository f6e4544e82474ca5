"""What `leaf-diffusion swap-cost` can be told, and what its pipelines are made of: the files that people load into them."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError

from leaf_diffusion.command_line import refuse_idle
from leaf_diffusion.diffusion.families import family_of
from leaf_diffusion.evaluation.encoders import with_encoder
from leaf_diffusion.evaluation.options import RunOptions
from leaf_diffusion.evaluation.results import Setting
from leaf_diffusion.evaluation.t2i.options import Options
from leaf_diffusion.evaluation.t2i.setup import Setup, prepare

WORLD_ENCODERS = ("original", "leaf", "typo-augmented")


@dataclass(frozen=True, kw_only=True)
class SwapCostOptions(RunOptions):
    """What a robust text encoder costs on clean prompts: plain, with a negative prompt, long, with a learnt token, with a LoRA.

    Token and LoRA were made for the first encoder, and every encoder gets the same files; the token also
    translated for it. In the embedded world they are trained first; elsewhere they are yours, and without them their
    conditions are left out.
    """

    pipeline: str = "world"
    """A diffusers Stable Diffusion: "world", a folder or a Hub id."""
    encoders: tuple[str, ...] = ()
    """As in `leaf-diffusion evaluate`; the first is the one that the others replace. Default in the world: original leaf
    typo-augmented."""
    prompts: Path | None = None
    """A file as in `leaf-diffusion evaluate`. Default: the world's own prompts, whose images can be judged exactly."""
    limit: int = 24
    """Number of prompts."""
    negative_prompt: str | None = None
    """Default: for the world's own prompts another colour and thing, otherwise "blurry, low quality"."""
    textual_inversion: Path | None = None
    """A token's embedding (.safetensors), learnt with the first encoder; needs --token and --prompt-with-token."""
    token: str | None = None
    prompt_with_token: tuple[str, ...] = ()
    lora: Path | None = None
    """A LoRA (.safetensors) as `load_lora_weights` of diffusers reads it."""
    train_steps: int = 150
    """Training steps of the world's token, and of its style LoRA."""
    steps: int | None = None
    """Sampling steps. Default: 15 in the world, elsewhere 50."""
    guidance: float | None = None
    """Default: 3 in the world, elsewhere 7.5."""
    batch_size: int = 24
    """Images drawn at once."""
    seed: int = 0
    """Seed of the world's prompts, of the training and of the noise."""
    clip_score_model: str | None = None
    """As in `leaf-diffusion evaluate`."""
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.train_steps < 1:
            raise ValueError(f"--train-steps must be at least 1, got {self.train_steps}")
        if self.seed < 0:
            raise ValueError(f"--seed cannot be negative, got {self.seed}")
        if not self.world and len(self.encoders) < 2:
            raise ValueError(
                f"--pipeline {self.pipeline} needs two or more --encoders to compare, such as original robust=FOLDER"
            )
        if len(self.encoders) == 1:
            raise ValueError(f"--encoders {self.encoders[0]}: name two or more to compare, such as original leaf")
        if not self.world and self.prompts is None:
            raise ValueError(f"--pipeline {self.pipeline} needs --prompts FILE (one prompt a line)")
        if self.world and self.dtype != "float32" and (self.textual_inversion is None or self.lora is None):
            raise ValueError(
                f"--dtype {self.dtype}: the world's token and LoRA are trained in float32; leave --dtype out"
            )
        if not self.world or (self.textual_inversion is not None and self.lora is not None):
            refuse_idle(self, "is of the token and the LoRA that the world trains", "train_steps")
        self._check_files()

    def _check_files(self) -> None:
        for name, path in (("--textual-inversion", self.textual_inversion), ("--lora", self.lora)):
            if path is not None and not path.is_file():
                raise ValueError(f"{name} {path}: no such file")
            if path is not None and path.suffix != ".safetensors":
                raise ValueError(
                    f"{name} {path}: only .safetensors files are loaded, others could run code; convert it"
                )
        if self.textual_inversion is None:
            if self.token is not None or self.prompt_with_token:
                raise ValueError("--token and --prompt-with-token belong to a --textual-inversion FILE; name the file")
        elif not self.token or not self.prompt_with_token:
            raise ValueError(
                f"--textual-inversion {self.textual_inversion} needs --token NAME and --prompt-with-token PROMPT ..."
            )
        elif without := [text for text in self.prompt_with_token if self.token not in text]:
            raise ValueError(f"--prompt-with-token: {without[0]!r} does not hold the token {self.token!r}; write it in")
        if self.lora is not None and not has_peft():
            raise ValueError(f"--lora {self.lora}: loading a LoRA needs the package peft: pip install peft")

    @property
    def world(self) -> bool:
        return self.pipeline == "world"

    def main_setting(self, labels: Sequence[str]) -> Setting | None:
        """On plain prompts: right images where scenes are known, else CLIPScore; moved images have no difference."""
        judged = self.world or self.clip_score_model is not None
        metric = "scene_accuracy" if self.world and self.prompts is None else "clip_score" if judged else None
        return None if metric is None else Setting(labels[1], metric, more=(("condition", "plain"),))

    def resolved(self) -> Self:
        """The world's encoders where none are named."""
        given = super().resolved()
        return replace(given, encoders=given.encoders or WORLD_ENCODERS)

    def evaluation(self) -> Options:
        """The same as options of the evaluation, whose loaders, judges and sampler are used; no attack is planned."""
        shared = {"pipeline", "prompts", "limit", "steps", "guidance", "batch_size", "clip_score_model", "output"}
        shared |= {"device", "dtype"}
        return Options(
            **{name: getattr(self, name) for name in shared},
            encoders=self.encoders or WORLD_ENCODERS,
            prompt_seed=self.seed,
            protocols=(),
        ).resolved()


@dataclass(frozen=True)
class Files:
    """What is loaded into a pipeline besides its text encoder."""

    embedding: Path | None = None
    token: str | None = None
    lora: Path | None = None


NOTHING = Files()


def has_peft() -> bool:
    return importlib.util.find_spec("peft") is not None


def load(options: SwapCostOptions) -> Setup:
    """Load pipeline and encoders and try the user's files; ValueError or OSError says what is wrong and what to do."""
    setup = prepare(options.evaluation())
    if family_of(setup.pipeline).stock != "StableDiffusionPipeline":
        raise ValueError(
            f"--pipeline {options.pipeline}: the cost of a swap is measured on a Stable Diffusion 1.x or 2.x"
        )
    first = next(iter(setup.encoders))  # what fits it fits all: the swap was checked
    alone = (Files(options.textual_inversion, options.token), Files(lora=options.lora))
    for files in alone:
        with pipeline_with(setup, first, files):
            pass
    return setup


@contextmanager
def pipeline_with(setup: Setup, label: str, files: Files) -> Iterator[Any]:
    """The pipeline around the encoder `label`, with `files` loaded as a user of diffusers would; UNet and VAE are shared.

    Raises ValueError for a file that does not fit.
    """
    pipeline = with_encoder(setup.pipeline, setup.encoders[label])
    if files.embedding is not None or files.lora is not None:
        # both are loaded in place, and several labels may share these parts
        pipeline.register_modules(text_encoder=copy.deepcopy(pipeline.text_encoder))
    if files.embedding is not None:
        pipeline.register_modules(tokenizer=copy.deepcopy(pipeline.tokenizer))
    try:
        if files.embedding is not None:
            _load_token(pipeline, files.embedding, files.token)
        if files.lora is not None:
            _load_lora(pipeline, files.lora)
        yield pipeline
    finally:
        if files.lora is not None:
            pipeline.unload_lora_weights()


def _load_token(pipeline: Any, path: Path, token: str | None) -> None:
    try:
        pipeline.load_textual_inversion(str(path.parent), weight_name=path.name, token=token, use_safetensors=True)
    except (ValueError, KeyError, RuntimeError, OSError, SafetensorError) as error:
        raise ValueError(f"--textual-inversion {path} does not fit the pipeline as {token!r}: {error}") from error


def _load_lora(pipeline: Any, path: Path) -> None:
    try:
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, use_safetensors=True)
    except (ValueError, KeyError, RuntimeError, OSError, SafetensorError) as error:
        raise ValueError(f"--lora {path} does not fit the pipeline: {error}") from error
    if not pipeline.get_list_adapters():
        raise ValueError(f"--lora {path}: no layer of this pipeline is named in it; it was made for another model")
