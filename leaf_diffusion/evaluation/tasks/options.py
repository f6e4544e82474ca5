"""Options that several experiments have, and how they are checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from leaf_diffusion.encoders.image_encoder import ImageEncoder
from leaf_diffusion.evaluation.options import ConstraintName, PromptOptions, RunOptions, check_edits
from leaf_diffusion.evaluation.prompts import Prompt, from_file, from_world
from leaf_diffusion.evaluation.tasks.goals import Goal
from leaf_diffusion.evaluation.tasks.images import TEMPLATES, image_anchors
from leaf_diffusion.evaluation.tasks.retrieval import Gallery, file_gallery, world_gallery
from leaf_diffusion.evaluation.tasks.text import TEMPLATES as TEXT_TEMPLATES
from leaf_diffusion.evaluation.tasks.text import Task, load_task
from leaf_diffusion.world.figures import zero_shot_anchors


@dataclass(frozen=True, kw_only=True)
class PromptRunOptions(RunOptions, PromptOptions):
    """Prompts of the world, or of a file."""

    prompt_seed: int = 0
    """Seed of the world's prompts."""

    def load_prompts(self, default: int, **shares: float) -> list[Prompt]:
        """The prompts; of the world's `default` where no limit is given, `shares` of them with several things."""
        if self.prompts is None:
            return from_world(self.limit or default, self.prompt_seed, **shares)
        return from_file(self.prompts, self.column, self.split, every=self.every_caption)[: self.limit]


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
class LabelledTextOptions(RunOptions):
    """Texts with classes, the images of these classes, and Charmer on the texts."""

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
    n_positions: int = 20
    """Positions that Charmer keeps a round."""
    constraint: ConstraintName = "no-new-words"

    def load_texts(self) -> Task:
        """The labelled texts."""
        return load_task(self.texts, images=self.per_class, column=self.column, split=self.split,
                         classes=self.text_classes, templates=self.text_templates)  # fmt: skip

    def seen_by(self, tower: ImageEncoder, classes: Sequence[str]) -> Tensor | None:
        """The texts' classes as an image tower sees them, [classes, d]; None where there are no images of them."""
        if self.texts == "world":
            if self.anchors is not None:
                raise ValueError("--anchors belongs to --texts of your own; the world draws its own images")
            return zero_shot_anchors(per_class=self.per_class, embed=lambda some: tower.embed(tower.prepare(some)))
        return None if self.anchors is None else image_anchors(self.anchors, classes, tower, self.per_class)


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(RunOptions):
    """Text-to-image retrieval, clean and under untargeted and targeted attacks."""

    renamed: ClassVar[Mapping[str, str]] = {"--caption-column": "--column", "--pictures": "--images"}

    captions: Path | None = None
    """A file that says which image a caption belongs to: COCO captions, the Karpathy split, Flickr30k, JSONL with
    "image" and "caption". Default: scenes of the world, with captions that name all there is."""
    images: Path | None = None
    """The folder of the file's images."""
    column: str | None = None
    """Where the captions stand. Default: the first of prompt, caption, text, raw, sentence."""
    split: str | None = None
    """Only captions of this split ("test" of the Karpathy split)."""
    image_encoder: str = "world:original"
    """The tower that embeds the images: a CLIP's folder, Hub id or openclip:ARCHITECTURE/PRETRAINED."""
    gallery: int = 1000
    """Images that each caption is ranked against, at most."""
    limit: int | None = None
    """Captions that are attacked. Default: 48 of the world's, all of a file's; the targets are not among them."""
    targets: int = 3
    """Target captions of the attack "toward"."""
    goals: tuple[Goal, ...] = ("drift", "margin", "toward")
    toward: Literal["captions", "images"] = "captions"
    """What the targeted attack moves the caption's embedding to: that of the target caption, or of its image."""
    k: tuple[int, ...] = (1, 2)
    """Numbers of character edits."""
    n_positions: int = 10
    """Positions that Charmer keeps a round."""
    constraint: ConstraintName = "no-new-words"
    seed: int = 0
    """Which scenes are drawn, and which captions are attacked or are targets."""

    def __post_init__(self) -> None:
        check_edits(self.k)
        check_counts(self, "gallery", "limit", "targets", "n_positions")
        if not self.goals or len(set(self.goals)) < len(self.goals):
            raise ValueError(f"--goals names different goals, at least one, got {self.goals}")
        if (self.captions is None) != (self.images is None):
            raise ValueError("--captions and --images belong together: the file, and the folder of its images")

    def load_gallery(self) -> Gallery:
        """The captions and their images."""
        if self.captions is None or self.images is None:
            return world_gallery(self.gallery, self.seed)
        return file_gallery(self.captions, self.images, column=self.column, split=self.split, n=self.gallery)


def check_counts(options: object, *names: str) -> None:
    """ValueError where one of these options is a number below 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
