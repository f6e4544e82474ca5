"""The paper's table of both domains: robust image tower yes or no, robust text tower yes or no.

Paper: section 4, its main table. A row is an image tower together with a text tower. Its images are classified by the
text tower's class features, clean and under APGD; its texts by the image tower's class features, clean and under Charmer.
Every row sees the same images, random starts and texts. Runs as `leaf-diffusion both-domains`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from leaf_diffusion.attacks import Charmer
from leaf_diffusion.encoders.image_encoder import ImageEncoder
from leaf_diffusion.evaluation.experiment import Common, Experiment, Setting, Stage, load_encoders, run
from leaf_diffusion.evaluation.t2i.attack import attack_row
from leaf_diffusion.evaluation.t2i.plan import content_id
from leaf_diffusion.evaluation.tasks.images import (
    TEMPLATES,
    attack_images,
    check_space,
    cosines,
    default_eps,
    image_anchors,
    load_image_encoders,
    load_images,
)
from leaf_diffusion.evaluation.tasks.text import TEMPLATES as TEXT_TEMPLATES
from leaf_diffusion.evaluation.tasks.text import load_task
from leaf_diffusion.reports.metrics import BOTH_TEXT_ACCURACY, IMAGE_ACCURACY
from leaf_diffusion.reports.pages.both_domains import both_page
from leaf_diffusion.reports.pages.experiment import Page
from leaf_diffusion.runs import RunStore
from leaf_diffusion.scoring.objectives import Margin
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import constraint_from_name
from leaf_diffusion.world.figures import zero_shot_anchors


@dataclass(frozen=True)
class BothDomainsOptions(Common):
    """Zero-shot accuracy in both domains, clean and attacked, of every image tower with every text tower."""

    encoders: tuple[str, ...] = ("original", "leaf")
    """Text towers: the original, then robust ones; as everywhere."""
    image_encoders: tuple[str, ...] = ("original", "fare")
    """Image towers of the same CLIP: the original, then robust ones."""
    images: Path | None = None
    """A folder with a sub-folder of images a class (ImageNet's layout). Default: the world's classes."""
    class_names: Path | None = None
    """JSON of class names: {sub-folder: name}, or a list in the sub-folders' order. Default: the sub-folders' names."""
    templates: tuple[str, ...] = TEMPLATES
    """Captions around the name of an image's class."""
    limit: int | None = 192
    """Number of images, spread over the classes."""
    eps: float | None = None
    """How far a pixel may move, in steps of 1/255. Default: 4 for the world, else 2, as in the paper."""
    steps: int = 50
    """Of APGD, on each of its losses."""
    batch_size: int = 64
    """Images at a time."""
    texts: str = "world"
    """ "world", a file of labelled texts (JSONL, CSV, TSV, Parquet), or dataset:NAME ("dataset:ag_news")."""
    column: str | None = None
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
    k: int = 1
    n_positions: int = 20
    """Positions that Charmer keeps a round."""
    constraint: Literal["no-new-words", "published", "none"] = "no-new-words"
    seed: int = 0
    """Of APGD's random starts."""

    def __post_init__(self) -> None:
        for name in ("limit", "text_limit", "steps", "batch_size", "per_class", "k", "n_positions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.eps is not None and not 0 < self.eps <= 255:
            raise ValueError(f"--eps is above 0 and up to 255, got {self.eps}")

    @property
    def radius(self) -> float:
        """`eps`, or its default."""
        return default_eps(self.images) if self.eps is None else self.eps


Pair = tuple[str, str]
"""Labels of an image tower and of a text tower."""


class BothDomains(Experiment[BothDomainsOptions]):
    name = "both-domains"

    def __init__(self, options: BothDomainsOptions) -> None:
        super().__init__(options)
        self.task = load_images(options.images, options.class_names, options.templates)
        self.texts = load_task(options.texts, images=options.per_class, column=options.column, split=options.split,
                               classes=options.text_classes, templates=options.text_templates)  # fmt: skip
        self.encoders = load_encoders(options.encoders, options.device)
        self.towers = load_image_encoders(options.image_encoders, options.device)
        self.rows = {f"{image} + {text}": (image, text) for text in self.encoders for image in self.towers}
        self.seen_by = {label: self.task.class_features(encoder) for label, encoder in self.encoders.items()}
        for image, text in self.rows.values():
            check_space(self.towers[image], self.seen_by[text], f"the text encoder {text}")
        anchors = {image: self._anchors(tower) for image, tower in self.towers.items()}
        self.anchors: dict[Pair, Tensor] = {}
        for image, text in self.rows.values():
            own = anchors[image]
            self.anchors[image, text] = self.texts.anchors(self.encoders[text]) if own is None else own
        self.numbers, self.chosen = self.task.spread(options.limit), self.texts.spread(options.text_limit)

    def _anchors(self, tower: ImageEncoder) -> Tensor | None:
        """The texts' classes as an image tower sees them, [classes, d]; None where there are no images of them."""
        options = self.options
        if options.texts == "world":
            if options.anchors is not None:
                raise ValueError("--anchors belongs to --texts of your own; the world draws its own images")
            return zero_shot_anchors(per_class=options.per_class, embed=lambda some: tower.embed(tower.prepare(some)))
        if options.anchors is None:
            return None
        return image_anchors(options.anchors, self.texts.classes, tower, options.per_class)

    def labels(self) -> Sequence[str]:
        return list(self.rows)

    def settings(self) -> dict[str, Any]:
        texts = {label: encoder.fingerprint for label, encoder in self.encoders.items()}
        image_prints = {label: tower.fingerprint for label, tower in self.towers.items()}
        return {
            "fingerprints": texts,
            "image_fingerprints": image_prints,
            "task": self.task.digest,
            "chosen": [[self.task.names[i], self.task.labels[i]] for i in self.numbers],
            "chosen_texts": [[self.texts.texts[i], self.texts.labels[i]] for i in self.chosen],
        }

    def stages(self) -> Sequence[Stage]:
        images = {content_id(unit="image", name=self.task.names[i], number=i): i for i in self.numbers}
        texts = {
            content_id(unit="text", row=row, number=i, text=self.texts.texts[i]): (row, i)
            for row in self.rows
            for i in self.chosen
        }
        return [
            Stage("images", images, self.measure_images, size=self.options.batch_size),
            Stage("texts", texts, self.measure_texts),
        ]

    def measure_images(self, store: RunStore, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Some images in every row: clean and under APGD on that row."""
        images = [self.task.load(i) for i in numbers]
        targets = torch.tensor([self.task.labels[i] for i in numbers])
        records = [{"number": i, "name": self.task.names[i], "right": {}, "held": {}} for i in numbers]
        for row, (image, text) in self.rows.items():
            tower = self.towers[image]
            classify = cosines(tower, self.seen_by[text])
            pixels, labels = tower.prepare(images).to(tower.device), targets.to(tower.device)
            found = attack_images(classify, "apgd", pixels, labels, eps=self.options.radius / 255,
                                    steps=self.options.steps, seed=self.options.seed)  # fmt: skip
            for record, clean, score in zip(records, found.clean_score, found.score, strict=True):
                record["right"][row], record["held"][row] = bool(clean <= 0), bool(score <= 0)
        return records

    def measure_texts(self, store: RunStore, units: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        """Some texts of a row: clean and under Charmer, which maximises the margin of the best wrong class."""
        options, found = self.options, []
        for row in dict.fromkeys(row for row, _ in units):
            numbers = [i for other, i in units if other == row]
            pair = self.rows[row]
            texts = [self.texts.texts[i] for i in numbers]
            objective = Margin(self.anchors[pair], [self.texts.labels[i] for i in numbers])
            scorer = Scorer(self.encoders[pair[1]], objective)
            rule = constraint_from_name(options.constraint)
            results = Charmer(n_positions=options.n_positions)(texts, scorer, k=options.k, constraint=rule)
            for i, result in zip(numbers, results, strict=True):
                line = attack_row(result, row, options.k, "charmer", options.constraint)
                found.append(
                    {"row": row, "number": i, "right": result.clean_score <= 0, "held": result.score <= 0, **line}
                )
        return found

    def values(self, records: Mapping[str, Sequence[dict[str, Any]]]) -> dict[Setting, dict[str, float]]:
        options, found = self.options, dict[Setting, dict[str, float]]()
        for row in self.rows:
            apgd = Setting(row, IMAGE_ACCURACY.key, "adaptive", row, "apgd", more=(("eps", options.radius),))
            charmer = Setting(
                row, BOTH_TEXT_ACCURACY.key, "adaptive", row, "charmer", options.constraint, options.k, (("eps", 0.0),)
            )
            places = {
                "images": (Setting(row, IMAGE_ACCURACY.key, more=(("eps", 0.0),)), apgd),
                "texts": (Setting(row, BOTH_TEXT_ACCURACY.key, more=(("eps", 0.0),)), charmer),
            }
            for record in records["images"]:
                for setting, kind in zip(places["images"], ("right", "held"), strict=True):
                    found.setdefault(setting, {})[f"{record['number']:07d}"] = float(record[kind][row])
            for record in (record for record in records["texts"] if record["row"] == row):
                for setting, kind in zip(places["texts"], ("right", "held"), strict=True):
                    found.setdefault(setting, {})[f"{record['number']:07d}"] = float(record[kind])
        return found

    def extra(self, records: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
        return {
            "images": len(self.numbers),
            "texts": len(self.chosen),
            "truncated": sum(record["truncated"] for record in records["texts"]),
        }

    def page(self, rows: Sequence[dict[str, Any]], records: Mapping[str, Sequence[dict[str, Any]]]) -> Page:
        return both_page(rows, records, self.extra(records), list(self.rows), self.options.radius, self.options.k)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(BothDomains, BothDomainsOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
