"""Zero-shot text classification under attack: exact robust accuracy at k=1, Charmer over k, accuracy over queries.

Paper: section 4, zero-shot text classification. The attack maximises the margin of the best wrong class and stops once
the label flips. At k=1 every allowed edit is scored, so the robust accuracy is exact over the alphabet and the
context of 77 tokens: no attack within them finds more. Runs as `leaf-diffusion zero-shot-text`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence

from leaf_diffusion.evaluation.experiment import Experiment, Records, Stage, load_encoders, run
from leaf_diffusion.evaluation.tasks import units
from leaf_diffusion.evaluation.tasks.images import seen_by_tower
from leaf_diffusion.evaluation.tasks.query_curve import PAIR, accuracies, mean_queries, sensitivities
from leaf_diffusion.evaluation.tasks.text import pair_clusters, sensitivity
from leaf_diffusion.evaluation.tasks.text_attacks import ZeroShotTextOptions, attack_text
from leaf_diffusion.reports.pages.experiment import Page
from leaf_diffusion.reports.pages.zero_shot import zero_shot_page
from leaf_diffusion.runs import RunStore
from leaf_diffusion.runs.experiment_records import ClassifiedText, MinimalPairs, typed
from leaf_diffusion.runs.results import ResultRow


class ZeroShotText(Experiment[ZeroShotTextOptions]):
    name = "zero-shot-text"

    def __init__(self, options: ZeroShotTextOptions) -> None:
        super().__init__(options)
        self.searches = options.searches()
        self.encoders = load_encoders(options.encoders, options.device)
        self.task = options.load_task()
        self.anchors = {label: self.task.anchors(encoder) for label, encoder in self.encoders.items()}
        if options.anchors is not None and options.image_encoder is not None:
            seen = seen_by_tower(options.anchors, self.task.classes, options.image_encoder, options.images, options.device,
                                 self.encoders)  # fmt: skip
            self.anchors = dict.fromkeys(self.encoders, seen)
        self.numbers = self.task.spread(options.limit)

    def settings(self) -> dict[str, object]:
        named: dict[str, object] = {"fingerprints": units.fingerprints(self.encoders), "texts": self.task.named(self.numbers),
                 "class_names": list(self.task.classes)}  # fmt: skip
        if self.options.anchors is not None:  # what the images are to the classifier
            shown = next(iter(self.anchors.values())).float().cpu().numpy().tobytes()
            named["anchor_features"] = hashlib.sha256(shown).hexdigest()
        return named

    def stages(self) -> Sequence[Stage]:
        texts = units.numbered(self.task.texts, self.numbers)
        stages = [units.stage("texts", self.encoders, texts, self.attack, size=1)]
        if self.task.pairs:
            stages.append(units.single("pairs", {label: label for label in self.encoders}, self.pairs_told))
        return stages

    def attack(self, store: RunStore, label: str, numbers: Sequence[int]) -> list[ClassifiedText]:
        options = self.options
        return [
            attack_text(self.encoders[label], label, self.task, self.anchors[label], number, searches=self.searches,
                        constraints=options.constraints, exact=options.exact, seed=options.seed)
            for number in numbers
        ]  # fmt: skip

    def pairs_told(self, store: RunStore, labels: Sequence[str]) -> list[MinimalPairs]:
        return [MinimalPairs(encoder=x, told=sensitivity(self.encoders[x], self.anchors[x])) for x in labels]

    def clusters(self) -> Mapping[str, str]:
        pairs = units.numbered_clusters(pair_clusters() if self.task.pairs else [], PAIR)
        return units.numbered_clusters(self.task.clusters) | pairs

    def values(self, records: Records) -> units.Noted:
        found = accuracies(typed(ClassifiedText, records["texts"]))
        found.update(sensitivities(typed(MinimalPairs, records.get("pairs", []))))
        return found

    def extra(self, records: Records) -> dict[str, object]:
        found = typed(ClassifiedText, records["texts"])
        return {
            "texts": len(self.numbers), "classes": len(self.task.classes), "mean_queries": mean_queries(found),
            "truncated": sum(each.truncated for record in found for each in record.attacks),
        }  # fmt: skip

    def page(self, rows: Sequence[ResultRow], records: Records) -> Page:
        texts = typed(ClassifiedText, records["texts"])
        return zero_shot_page(rows, texts, self.extra(records), list(self.encoders), self.options.task)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(ZeroShotText, ZeroShotTextOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
