"""The paper's table of both domains: robust image tower yes or no, robust text tower yes or no.

Paper: section 4, its main table. A row is an image tower together with a text tower. Its images are classified by the
text tower's class features, clean and under APGD; its texts by the image tower's class features, clean and under an attack
(the paper: Charmer).
Every row sees the same images, random starts and texts. Runs as `leaf-diffusion both-domains`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from leaf_diffusion.evaluation.experiment import Experiment, Records, Setting, Stage, load_encoders, run
from leaf_diffusion.evaluation.options import check_edits
from leaf_diffusion.evaluation.tasks import units
from leaf_diffusion.evaluation.tasks.domains import BothDomainsOptions, measure_images, measure_texts, tower_pairs
from leaf_diffusion.evaluation.tasks.image_attacks import default_eps
from leaf_diffusion.evaluation.tasks.images import load_image_encoders, load_images
from leaf_diffusion.reports.metrics import BOTH_TEXT_ACCURACY, IMAGE_ACCURACY
from leaf_diffusion.reports.pages.both_domains import both_page
from leaf_diffusion.reports.pages.experiment import Page
from leaf_diffusion.runs.experiment_records import PairImage, PairText, typed
from leaf_diffusion.runs.results import ResultRow


class BothDomains(Experiment[BothDomainsOptions]):
    name = "both-domains"
    not_identity = ("image_encoders",)

    def __init__(self, options: BothDomainsOptions) -> None:
        super().__init__(options)
        self.images = load_images(options.images, options.class_names, options.templates)
        self.texts = options.load_texts()
        self.encoders = load_encoders(options.encoders, options.device)
        self.towers = load_image_encoders(options.image_encoders, options.device)
        self.tower_pairs = tower_pairs(self.towers, self.encoders, self.images, self.texts, options.seen_by)
        self.numbers, self.chosen = self.images.spread(options.limit), self.texts.spread(options.text_limit)
        check_edits((options.k,), options.attack, [self.texts.texts[i] for i in self.chosen])
        self.radius = default_eps(options.images) if options.eps is None else options.eps

    def labels(self) -> Sequence[str]:
        return list(self.tower_pairs)

    def settings(self) -> dict[str, object]:
        prints, image_prints = units.fingerprints(self.encoders), units.fingerprints(self.towers)
        chosen, texts = self.images.named(self.numbers), self.texts.named(self.chosen)
        return {"fingerprints": prints, "image_fingerprints": image_prints, "task": self.images.digest,
                "chosen": chosen, "chosen_texts": texts}  # fmt: skip

    def stages(self) -> Sequence[Stage]:
        """Images in every row under APGD on that row; texts of each row under the attack."""
        pairs, options = self.tower_pairs, self.options
        images = units.single(
            "images", units.numbered(self.images.names, self.numbers),
            lambda _, numbers: measure_images(pairs, self.images, numbers, eps=self.radius / 255,
                                              steps=options.attack_steps, seed=options.seed), options.batch_size,
        )  # fmt: skip
        texts = units.stage(
            "texts", pairs, units.numbered(self.texts.texts, self.chosen),
            lambda _, row, numbers: measure_texts(row, pairs[row], self.texts, numbers, attack=options.attack, k=options.k,
                                                  constraint=options.constraint),
        )  # fmt: skip
        return [images, texts]

    def clusters(self) -> Mapping[str, str]:
        return units.numbered_clusters(self.images.clusters) | units.numbered_clusters(self.texts.clusters, "text ")

    def values(self, records: Records) -> units.Noted:
        found, k, rule, attack = units.Noted(), self.options.k, self.options.constraint, self.options.attack.label
        for row in self.tower_pairs:
            places = [(row, IMAGE_ACCURACY.key), (row, BOTH_TEXT_ACCURACY.key)]
            image, text = (Setting(*place, more=(("eps", 0.0),)) for place in places)
            apgd = Setting(*places[0], "adaptive", row, "apgd", more=(("eps", self.radius),))
            searched = Setting(*places[1], "adaptive", row, attack, rule, k, more=(("eps", 0.0),))
            for each in typed(PairImage, records["images"]):
                found.note(image, each.number, each.right[row])
                found.note(apgd, each.number, each.held[row])
            for one in (one for one in typed(PairText, records["texts"]) if one.row == row):
                found.note(text, units.unit_name(one.number, "text "), one.right)
                found.note(searched, units.unit_name(one.number, "text "), one.held, one.exact)
        return found.with_exact()

    def extra(self, records: Records) -> dict[str, int]:
        truncated = sum(record.truncated for record in typed(PairText, records["texts"]))
        return {"images": len(self.numbers), "texts": len(self.chosen), "truncated": truncated}

    def page(self, rows: Sequence[ResultRow], records: Records) -> Page:
        texts = typed(PairText, records["texts"])
        return both_page(rows, texts, self.extra(records), list(self.tower_pairs), self.radius, self.options.k)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(BothDomains, BothDomainsOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
