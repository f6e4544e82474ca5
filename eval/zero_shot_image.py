"""Zero-shot image classification of image towers, clean and under PGD and APGD, each on itself and on the others.

Paper: section 4, the image columns of its table of both domains. An image is classified by the class whose caption's
feature is nearest (cosine). Every tower sees the same images, and random starts that follow from the image. Runs as
`leaf-diffusion zero-shot-image` and as `python eval/zero_shot_image.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from leaf_diffusion.evaluation.experiment import Common, Experiment, Setting, Stage, load_encoders, run
from leaf_diffusion.evaluation.t2i.plan import content_id
from leaf_diffusion.evaluation.tasks.images import (
    TEMPLATES,
    attack_images,
    check_space,
    cosines,
    default_eps,
    load_image_encoders,
    load_images,
)
from leaf_diffusion.reports.metrics import IMAGE_ACCURACY
from leaf_diffusion.reports.pages.experiment import Example, ExampleCell, Page, Section, curve, matrices
from leaf_diffusion.reports.results import Row
from leaf_diffusion.runs import RunStore, image_name
from leaf_diffusion.text.visible import isolated

SHOWN = 6
"""Images with examples on the page."""


@dataclass(frozen=True)
class ZeroShotImageOptions(Common):
    """Zero-shot image classification of image towers, clean and under l-inf attacks on the pixels."""

    encoders: tuple[str, ...] = ("original", "fare")
    """Image towers: labels of the world's, sources ("world:fare", "openclip:...", a folder, a Hub id) or LABEL=SOURCE. The
    first is the baseline of the differences."""
    text_encoder: str = "original"
    """The text tower that names the classes, one for all: of the CLIP that the image towers belong to."""
    images: Path | None = None
    """A folder with a sub-folder of images a class (ImageNet's layout). Default: the world's classes."""
    class_names: Path | None = None
    """JSON of class names: {sub-folder: name}, or a list in the sub-folders' order. Default: the sub-folders' names."""
    templates: tuple[str, ...] = TEMPLATES
    """Captions around a class name, whose mean feature is the class; the world has its own."""
    limit: int | None = None
    """Number of images, spread over the classes. Default: all."""
    attacks: tuple[Literal["pgd", "apgd"], ...] = ("pgd", "apgd")
    """apgd: on the cross-entropy, then on the DLR loss for images that are still right."""
    eps: tuple[float, ...] = ()
    """How far a pixel may move, in steps of 1/255. Default: 4 for the world, else 2, as in the paper."""
    steps: int = 50
    transfer: bool = True
    """Show what was found on one tower to the others, too."""
    batch_size: int = 64
    seed: int = 0
    """Of the random starts."""

    def __post_init__(self) -> None:
        if not self.attacks or not all(0 < eps <= 255 for eps in self.eps):
            raise ValueError(f"--attacks needs one name at least, --eps numbers above 0 and up to 255, got {self.eps}")
        for name in ("limit", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")

    @property
    def radii(self) -> tuple[float, ...]:
        """`eps`, or its default."""
        return self.eps or (default_eps(self.images),)


class ZeroShotImage(Experiment[ZeroShotImageOptions]):
    name = "zero-shot-image"

    def __init__(self, options: ZeroShotImageOptions) -> None:
        super().__init__(options)
        self.task = load_images(options.images, options.class_names, options.templates)
        self.encoders = load_image_encoders(options.encoders, options.device)
        ((_, text),) = load_encoders((options.text_encoder,), options.device).items()
        self.text_fingerprint = text.fingerprint
        features = self.task.class_features(text)
        for encoder in self.encoders.values():
            check_space(encoder, features, f"the text encoder {options.text_encoder}")
        self.classify = {label: cosines(encoder, features) for label, encoder in self.encoders.items()}
        self.numbers = self.task.spread(options.limit)

    def settings(self) -> dict[str, Any]:
        prints = {label: encoder.fingerprint for label, encoder in self.encoders.items()}
        named = [[self.task.names[i], self.task.labels[i]] for i in self.numbers]
        return {"fingerprints": prints, "text": self.text_fingerprint, "task": self.task.digest, "chosen": named}

    def stages(self) -> Sequence[Stage]:
        units = {content_id(unit="image", name=self.task.names[i], number=i): i for i in self.numbers}
        return [Stage("images", units, self.measure, size=self.options.batch_size)]

    def measure(self, store: RunStore, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Some images through every tower: clean, attacked on the tower itself, attacked on the others."""
        options, images = self.options, [self.task.load(i) for i in numbers]
        labels = torch.tensor([self.task.labels[i] for i in numbers])
        records = [
            {
                "number": i,
                "name": self.task.names[i],
                "label": int(label),
                "said": {},
                "attacked": list[Any](),
                "images": [],
            }
            for i, label in zip(numbers, labels, strict=True)
        ]
        pixels = {name: encoder.prepare(images).to(encoder.device) for name, encoder in self.encoders.items()}
        for name, x in pixels.items():
            for record, said in zip(records, self.said(name, x), strict=True):
                record["said"][name] = said
        shown = set(self.numbers[:: max(1, len(self.numbers) // SHOWN)][:SHOWN])
        for source, x in pixels.items():
            for attack, eps in [(attack, eps) for attack in options.attacks for eps in options.radii]:
                found = attack_images(self.classify[source], attack, x, labels.to(x.device), eps=eps / 255,
                                        steps=options.steps, seed=options.seed)  # fmt: skip
                fits = [
                    name for name in pixels if name == source or (options.transfer and self.same_eyes(name, source))
                ]
                for name in fits:
                    for record, said in zip(records, self.said(name, found.pixels), strict=True):
                        record["attacked"].append({"encoder": name, "source": source, "attack": attack, "eps": eps, "said": said})  # fmt: skip
                for i, number in enumerate(numbers):
                    if number in shown and attack == options.attacks[-1] and eps == options.radii[0]:
                        for j, part in enumerate(side_by_side(x[i], found.pixels[i], eps / 255)):
                            path = image_name(f"{source} {attack} {eps} {number} {j}")
                            records[i]["images"].append(store.save_image(path, part))
        return records

    def said(self, name: str, pixels: Tensor) -> list[int]:
        """The classes that a tower finds."""
        with torch.no_grad():
            return [int(i) for i in self.classify[name](pixels).argmax(1)]

    def same_eyes(self, one: str, other: str) -> bool:
        """Whether two towers take the same pixels, so that an attacked image can be handed on."""
        a, b = (self.encoders[name].preprocessing for name in (one, other))
        return a.description == b.description

    def values(self, records: Mapping[str, Sequence[dict[str, Any]]]) -> dict[Setting, dict[str, float]]:
        found: dict[Setting, dict[str, float]] = {}
        for record in records["images"]:
            unit, right = f"{record['number']:07d}", record["label"]
            for name in self.encoders:
                setting = Setting(name, IMAGE_ACCURACY.key, more=(("eps", 0.0),))
                found.setdefault(setting, {})[unit] = float(record["said"][name] == right)
            for row in record["attacked"]:
                name, source = row["encoder"], row["source"]
                place = ("adaptive" if name == source else "transfer", source, row["attack"])
                setting = Setting(name, IMAGE_ACCURACY.key, *place, more=(("eps", row["eps"]),))
                # an image that is wrong already is not made right by an attack on another tower
                found.setdefault(setting, {})[unit] = float(row["said"] == right == record["said"][name])
        return found

    def extra(self, records: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
        return {"images": len(records["images"]), "classes": len(self.task.classes)}

    def page(self, rows: Sequence[dict[str, Any]], records: Mapping[str, Sequence[dict[str, Any]]]) -> Page:
        options, labels = self.options, list(self.encoders)
        plots = []
        if len(options.radii) > 1:
            own = [row for row in rows if row["protocol"] in ("clean", "adaptive")]
            plots = [(attack, curve([r for r in own if r["attack"] in (None, attack)], IMAGE_ACCURACY, labels,
                                    x=lambda row: float(row["eps"]), xlabel="eps, of 255", name=f"image-{attack}"))
                     for attack in options.attacks]  # fmt: skip
        about = "Attacks on a tower itself, and images found on one tower shown to the other."
        sections = [
            Section("Accuracy", about, matrices(rows, [IMAGE_ACCURACY], label=image_line, more=("eps",)), plots),
            Section("Images", f"{SHOWS} {options.attacks[-1]}, eps {options.radii[0]:g}/255.",
                    examples=self.examples(records["images"])),
        ]  # fmt: skip
        facts = {
            "images": str(len(self.numbers)),
            "classes": str(len(self.task.classes)),
            "steps": str(options.steps),
        }
        last = [r for r in rows if r["attack"] == options.attacks[-1] and r["protocol"] == "adaptive" and not r["baseline"]
                and r["eps"] == options.radii[0]]  # fmt: skip
        said = ", ".join(f"{isolated(row['encoder'])} {IMAGE_ACCURACY.show(row['mean'])}" for row in last)
        headline = f"Right under {options.attacks[-1]}, eps {options.radii[0]:g}/255: {said}"
        return Page("zero-shot image classification", headline, facts, labels, sections)

    def examples(self, records: Sequence[dict[str, Any]]) -> list[Example]:
        found = []
        for record in records:
            cells = []
            for place, name in enumerate(self.encoders):
                paths = record["images"][3 * place : 3 * place + 3]
                said = next(row["said"] for row in record["attacked"] if row["encoder"] == row["source"] == name
                            and row["attack"] == self.options.attacks[-1] and row["eps"] == self.options.radii[0])  # fmt: skip
                classes = self.task.classes
                note = f"clean: {isolated(classes[record['said'][name]])}; attacked: {isolated(classes[said])}"
                verdict = "right" if said == record["label"] else "wrong"
                cells.append(
                    ExampleCell(name, images=[self.folder / path for path in paths], verdict=verdict, note=note)
                )
            if record["images"]:
                found.append(Example(self.task.classes[record["label"]], cells))
        return found


SHOWS = "The image, then attacked, then what was added (gray: nothing; black and white: eps). Attack:"


def side_by_side(clean: Tensor, attacked: Tensor, eps: float) -> list[Image.Image]:
    """Image, attacked image and their difference (eps as black and white)."""
    parts = [clean, attacked, (attacked - clean) / (2 * eps) + 0.5]
    eight_bits = [part.mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy() for part in parts]
    return [Image.fromarray(part) for part in eight_bits]


def image_line(row: Row) -> str:
    """ "clean", "apgd on itself, eps 4/255"."""
    if row["protocol"] == "clean":
        return "clean"
    against = "on itself" if row["protocol"] == "adaptive" else f"on {isolated(row['source'])}"
    return f"{row['attack']} {against}, eps {row['eps']:g}/255"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(ZeroShotImage, ZeroShotImageOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
