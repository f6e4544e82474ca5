"""Options that several experiments have, and how they are checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from leaf_diffusion.command_line import refuse_idle
from leaf_diffusion.encoders.image_encoder import ImageEncoder
from leaf_diffusion.evaluation.options import MeasuredPromptOptions, RunOptions, SearchOptions
from leaf_diffusion.evaluation.prompts import Prompt, from_world
from leaf_diffusion.evaluation.results import Setting
from leaf_diffusion.evaluation.tasks.image_attacks import ImageAttackName, default_eps
from leaf_diffusion.evaluation.tasks.images import TEMPLATES, image_anchors
from leaf_diffusion.evaluation.tasks.text import TEMPLATES as TEXT_TEMPLATES
from leaf_diffusion.evaluation.tasks.text import Task, load_task
from leaf_diffusion.reports.metrics import IMAGE_ACCURACY
from leaf_diffusion.world.figures import zero_shot_anchors


@dataclass(frozen=True, kw_only=True)
class PromptRunOptions(RunOptions, MeasuredPromptOptions):
    """Prompts of the world, or of a file."""

    prompt_seed: int = 0
    """Seed of the world's prompts."""

    def load_prompts(self, default: int, **shares: float) -> list[Prompt]:
        """The prompts; of the world's `default` where no limit is given, `shares` of them with several things."""
        if self.prompts is None:
            self.of_no_file()
            return from_world(self.limit or default, self.prompt_seed, **shares)
        refuse_idle(self, "is of the world's own prompts", "prompt_seed")
        return self.read(self.prompts)


@dataclass(frozen=True, kw_only=True)
class TaskOptions(RunOptions):
    """A zero-shot text classification task."""

    renamed: ClassVar[Mapping[str, str]] = {"--pictures": "--images"}

    task: str = "world"
    """ "world" (a caption a class of colour and noun, image anchors), a file of labelled texts (JSONL, CSV, TSV, Parquet: a
    column "label"), or dataset:NAME of Hugging Face datasets ("dataset:ag_news")."""
    column: str | None = None
    """Where the texts stand. Default: the first of prompt, caption, text, raw, sentence."""
    split: str | None = None
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers. Default: the labels as they are written."""
    templates: tuple[str, ...] = TEXT_TEMPLATES
    """Texts around a class name, whose mean feature is the class; the world's task takes images instead."""
    images: int = 8
    """Images a class behind each class feature, of the world's task and of --anchors."""
    limit: int | None = None
    """Number of texts, spread over the classes. Default: all."""

    def load_task(self) -> Task:
        """The texts, their classes, and what the classes look like."""
        if self.task == "world":
            refuse_idle(self, "belongs to a --task of your own", "column", "split", "classes", "templates")
        return load_task(self.task, images=self.images, column=self.column, split=self.split, classes=self.classes,
                         templates=self.templates)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ImageOptions(RunOptions):
    """Images with classes, and attacks on their pixels."""

    renamed: ClassVar[Mapping[str, str]] = {"--steps": "--attack-steps", "--pictures": "--images"}

    images: Path | None = None
    """A folder with a sub-folder of images a class (ImageNet's layout). Default: the world's classes."""
    class_names: Path | None = None
    """JSON of class names: {sub-folder: name}, or a list in the sub-folders' order. Default: the sub-folders' names."""
    templates: tuple[str, ...] = TEMPLATES
    """Captions around the name of an image's class, whose mean feature is the class; the world has its own."""
    attack_steps: int = 50
    """Of PGD, and of APGD on each of its losses."""
    batch_size: int = 64
    """Images at a time."""
    seed: int = 0
    """Of the attacks' random starts."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotImageOptions(ImageOptions):
    """Zero-shot image classification of image towers, clean and under l-inf attacks on the pixels."""

    encoders: tuple[str, ...] = ("original", "fare")
    """Image towers: labels of the world's, sources ("world:fare", "openclip:...", a folder, a Hub id) or LABEL=SOURCE. The
    first is the baseline of the differences."""
    text_encoder: str = "original"
    """The text tower that names the classes, one for all: of the CLIP that the image towers belong to."""
    limit: int | None = None
    """Number of images, spread over the classes. Default: all."""
    attacks: tuple[ImageAttackName, ...] = ("pgd", "apgd")
    """apgd: on the cross-entropy, then on the DLR loss for images that are still right."""
    eps: tuple[float, ...] = ()
    """How far a pixel may move, in steps of 1/255. Default: 4 for the world, else 2, as in the paper."""
    transfer: bool = True
    """Show what was found on one tower to the others, too."""

    def __post_init__(self) -> None:
        if not self.attacks or not all(0 < eps <= 255 for eps in self.eps):
            raise ValueError(f"--attacks needs one name at least, --eps numbers above 0 and up to 255, got {self.eps}")
        check_counts(self, "limit", "attack_steps", "batch_size")

    @property
    def radii(self) -> tuple[float, ...]:
        """Every eps, of 255."""
        return self.eps or (default_eps(self.images),)

    def main_setting(self, labels: Sequence[str]) -> Setting:
        """The images that the second tower keeps right under the last attack at the first eps."""
        place = ("adaptive", labels[1], self.attacks[-1])
        return Setting(labels[1], IMAGE_ACCURACY.key, *place, more=(("eps", self.radii[0]),))


@dataclass(frozen=True, kw_only=True)
class LabelledTextOptions(RunOptions, SearchOptions):
    """Texts with classes, the images of these classes, and the attack on the texts."""

    texts: str = "world"
    """ "world", a file of labelled texts (JSONL, CSV, TSV, Parquet), or dataset:NAME ("dataset:ag_news")."""
    column: str | None = None
    """Where the texts stand. Default: the first of prompt, caption, text, raw, sentence."""
    split: str | None = None
    text_classes: tuple[str, ...] = ()
    """Names of the texts' classes, in the order of their numbers. Default: the labels as they are written."""
    text_templates: tuple[str, ...] = TEXT_TEMPLATES
    """Texts around a class name, whose mean feature is the class, where there are no --anchors."""
    anchors: Path | None = None
    """Images of the texts' classes, a sub-folder a class: the classes as the image tower sees them. The world has its
    own; without any, a file's classes are the text tower's own, and its text columns do not depend on the image tower."""
    per_class: int = 8
    """Images behind a class of the texts, at most."""
    text_limit: int | None = 96
    """Number of texts, spread over the classes."""

    def load_texts(self) -> Task:
        """The labelled texts."""
        if self.texts == "world":
            names = ("column", "split", "text_classes", "text_templates")
            refuse_idle(self, "belongs to --texts of your own", *names)
        elif self.anchors is None:
            refuse_idle(self, "belongs to --anchors, or to the world's texts", "per_class")
        return load_task(self.texts, images=self.per_class, column=self.column, split=self.split,
                         classes=self.text_classes, templates=self.text_templates)  # fmt: skip

    def seen_by(self, tower: ImageEncoder, classes: Sequence[str]) -> Tensor | None:
        """The texts' classes as an image tower sees them, [classes, d]; None where there are no images of them."""
        if self.texts == "world":
            if self.anchors is not None:
                raise ValueError("--anchors belongs to --texts of your own; the world draws its own images")
            return zero_shot_anchors(per_class=self.per_class, embed=lambda some: tower.embed(tower.prepare(some)))
        return None if self.anchors is None else image_anchors(self.anchors, classes, tower, self.per_class)


def check_counts(options: object, *names: str) -> None:
    """ValueError where one of these options is a number below 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
