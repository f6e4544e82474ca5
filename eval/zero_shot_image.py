"""Zero-shot image classification of image towers, clean and under PGD and APGD, each on itself and on the others.

Paper: section 4, the image columns of its table of both domains. An image is classified by the class whose caption's
feature is nearest (cosine). Every tower sees the same images, and random starts that follow from the image. Runs as
`leaf-diffusion zero-shot-image` and as `python eval/zero_shot_image.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from PIL.Image import Image

from leaf_diffusion.evaluation.experiment import Experiment, Records, Setting, Stage, load_encoders, run
from leaf_diffusion.evaluation.tasks import units
from leaf_diffusion.evaluation.tasks.image_attacks import Classifier, classify_attacked
from leaf_diffusion.evaluation.tasks.images import load_image_encoders, load_images
from leaf_diffusion.evaluation.tasks.options import ZeroShotImageOptions
from leaf_diffusion.reports.metrics import IMAGE_ACCURACY
from leaf_diffusion.reports.pages.experiment import Page
from leaf_diffusion.reports.pages.zero_shot_image import zero_shot_image_page
from leaf_diffusion.runs import RunStore, image_name
from leaf_diffusion.runs.experiment_records import ClassifiedImage, typed
from leaf_diffusion.runs.results import ResultRow

SHOWN = 6
"""Images with examples on the page."""


class ZeroShotImage(Experiment[ZeroShotImageOptions]):
    name = "zero-shot-image"
    not_identity = ("text_encoder",)

    def __init__(self, options: ZeroShotImageOptions) -> None:
        super().__init__(options)
        self.task = load_images(options.images, options.class_names, options.templates)
        self.encoders = load_image_encoders(options.encoders, options.device)
        (self.text_encoder,) = load_encoders((options.text_encoder,), options.device).values()
        features = self.task.class_features(self.text_encoder)
        named = f"the text encoder {options.text_encoder}"
        self.classify = {label: Classifier(encoder, features, named) for label, encoder in self.encoders.items()}
        self.numbers = self.task.spread(options.limit)
        self.shown = set(self.numbers[:: max(1, len(self.numbers) // SHOWN)][:SHOWN])

    def settings(self) -> dict[str, object]:
        prints, text = units.fingerprints(self.encoders), self.text_encoder.fingerprint
        return {"fingerprints": prints, "text": text, "task": self.task.digest, "chosen": self.task.named(self.numbers)}

    def stages(self) -> Sequence[Stage]:
        images = units.numbered(self.task.names, self.numbers)
        return [units.single("images", images, self.measure, self.options.batch_size, ClassifiedImage)]

    def measure(self, store: RunStore, numbers: Sequence[int]) -> list[ClassifiedImage]:
        def show(name: str, number: int, parts: Sequence[Image]) -> list[str]:
            kept = parts if number in self.shown else ()
            return [store.save_image(image_name(f"{name} {number} {j}"), part) for j, part in enumerate(kept)]

        steps, seed, transfer = self.options.attack_steps, self.options.seed, self.options.transfer
        return classify_attacked(self.classify, self.task, numbers, self.options.attacks, self.options.radii, show,
                                 steps=steps, seed=seed, transfer=transfer)  # fmt: skip

    def clusters(self) -> Mapping[str, str]:
        return units.numbered_clusters(self.task.clusters)

    def values(self, records: Records) -> units.Noted:
        found = units.Noted()
        for record in typed(ClassifiedImage, records["images"]):
            for label, said in record.said.items():
                setting = Setting(label, IMAGE_ACCURACY.key, more=(("eps", 0.0),))
                found.note(setting, record.number, said == record.label)
            for row in record.attacked:
                place = ("adaptive" if row.encoder == row.source else "transfer", row.source, row.attack)
                setting = Setting(row.encoder, IMAGE_ACCURACY.key, *place, more=(("eps", row.eps),))
                # an image that is wrong already is not made right by an attack on another tower
                found.note(setting, record.number, row.said == record.label == record.said[row.encoder])
        return found

    def extra(self, records: Records) -> dict[str, int]:
        return {"images": len(self.numbers), "classes": len(self.task.classes)}

    def page(self, rows: Sequence[ResultRow], records: Records) -> Page:
        found, facts = typed(ClassifiedImage, records["images"]), {"steps": str(self.options.attack_steps)}
        return zero_shot_image_page(rows, found, list(self.encoders), self.task.classes, self.folder, facts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(ZeroShotImage, ZeroShotImageOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
