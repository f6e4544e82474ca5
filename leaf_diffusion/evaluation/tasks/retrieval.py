"""Text-to-image retrieval: its options, and the images of its page."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from leaf_diffusion.command_line import refuse_idle
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.image_encoder import ImageEncoder
from leaf_diffusion.evaluation.options import RunOptions, SearchOptions, check_edits
from leaf_diffusion.evaluation.results import Setting
from leaf_diffusion.evaluation.tasks.gallery import Gallery, file_gallery, world_gallery
from leaf_diffusion.evaluation.tasks.goals import Goal
from leaf_diffusion.evaluation.tasks.options import check_counts
from leaf_diffusion.evaluation.tasks.ranks import TOP
from leaf_diffusion.evaluation.tasks.units import attack_counts
from leaf_diffusion.reports.metrics import CUTS, recall
from leaf_diffusion.reports.pages.retrieval import SHOWN, shown_search
from leaf_diffusion.runs import RunStore, image_name
from leaf_diffusion.runs.experiment_records import AttackedCaptions, Ranked, Shown

THUMBNAIL = 208
"""Pixels of an image on the page, at most."""


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(RunOptions, SearchOptions):
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
    seed: int = 0
    """Which scenes are drawn, and which captions are attacked or are targets."""

    def __post_init__(self) -> None:
        check_edits(self.k, self.attack)
        check_counts(self, "gallery", "limit", "targets")
        if "toward" not in self.goals:
            refuse_idle(self, 'belongs to the goal "toward"', "toward")
        if not self.goals or len(set(self.goals)) < len(self.goals):
            raise ValueError(f"--goals names different goals, at least one, got {self.goals}")
        if (self.captions is None) != (self.images is None):
            raise ValueError("--captions and --images belong together: the file, and the folder of its images")

    def main_setting(self, labels: Sequence[str]) -> Setting:
        """Recall@1 of the attacked captions under the first goal's attack at the smallest k."""
        place = ("adaptive", labels[1], f"{self.attack.label}, {self.goals[0]}", self.constraint, min(self.k))
        return Setting(labels[1], recall(1).key, *place, more=(("captions", "attacked"),))

    def load_gallery(self) -> Gallery:
        """The captions and their images."""
        if self.captions is None or self.images is None:
            refuse_idle(self, "belongs to --captions FILE", "column", "split")
            return world_gallery(self.gallery, self.seed)
        return file_gallery(self.captions, self.images, column=self.column, split=self.split, n=self.gallery)

    def drawn(self, size: int) -> tuple[list[int], list[int]]:
        """Numbers of the targets and of the attacked captions, of so many; ValueError where these are too few."""
        if size <= max(CUTS) + self.targets:
            raise ValueError(f"{size} images are too few for recall@{max(CUTS)} and {self.targets} targets")
        drawn = random.Random(f"retrieval {self.seed}").sample(range(size), size)
        queries = drawn[self.targets :]
        return drawn[: self.targets], queries[: self.limit or (48 if self.captions is None else size)]


def counts(
    gallery: Gallery, queries: Sequence[int], targets: Sequence[int], records: Sequence[AttackedCaptions]
) -> dict[str, object]:
    """How much was measured, on which targets, and what was left out."""
    return {
        "images": len(gallery.captions),
        "queries": len(queries),
        "captions_of_several_images": gallery.shared,
        "target_captions": [gallery.captions[target] for target in targets],
        **attack_counts(row for record in records for row in record.attacked),
    }


def check_space(images: ImageEncoder, encoders: Mapping[str, TextEncoder], gallery: Gallery, named: str) -> None:
    """ValueError where the captions' features are of another size than the images'."""
    width = images.embed(images.prepare([gallery.load(0)])).shape[1]
    for label, encoder in encoders.items():
        own = encoder.features(encoder.tokenize(encoder.preprocess([gallery.captions[0]]))).shape[1]
        if own != width:
            raise ValueError(
                f"--encoders {label} has {own} features a caption, {named} {width} an image: they are of different CLIPs"
            )


def shown_units(
    encoders: Iterable[str], queries: Sequence[int], targets: Sequence[int], goals: Sequence[str]
) -> dict[str, Shown]:
    """The images of the page, not yet found: the queries' and the targets' own, then the first ones of each ranking."""
    labels, named = list(encoders), ("clean", *goals)
    alone = [("", number, "", 0) for number in (*queries[:SHOWN], *targets)]
    places = [
        (label, query, goal, i) for query in queries[:SHOWN] for label in labels for goal in named for i in range(TOP)
    ]
    return {
        json.dumps(place): Shown(encoder=place[0], query=place[1], goal=place[2], place=place[3])
        for place in (*alone, *places)
    }


def show_images(store: RunStore, gallery: Gallery, wanted: Sequence[Shown], ks: Sequence[int]) -> list[Shown]:
    """What stands at each place, as a thumbnail of the run."""
    records = store.records("ranks", Ranked)
    searches = {(record.encoder, record.number): record.searches for record in records}
    shown = []
    for one in wanted:
        found = one.query
        if one.encoder:
            found = shown_search(searches[one.encoder, one.query], one.goal, ks).top[one.place]
        image = gallery.load(found)
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        name = image_name(f"{one.encoder} {one.query} {one.goal} {one.place}")
        shown.append(one.model_copy(update={"found": found, "image": store.save_image(name, image)}))
    return shown
