"""Zero-shot text classification under attack: exact robust accuracy at k=1, Charmer over k, accuracy over queries.

Paper: section 4, zero-shot text classification. The attack maximises the margin of the best wrong class and stops once
the label flips. At k=1 every allowed edit is scored, so the robust accuracy is exact over the alphabet and the
context of 77 tokens: no attack within them finds more. Runs as `leaf-diffusion zero-shot-text`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leaf_diffusion.attacks import attack_from_name
from leaf_diffusion.evaluation.experiment import Experiment, Records, Stage, load_encoders, run
from leaf_diffusion.evaluation.options import ConstraintName, check_edits
from leaf_diffusion.evaluation.tasks import units
from leaf_diffusion.evaluation.tasks.images import seen_by_tower
from leaf_diffusion.evaluation.tasks.options import TaskOptions, check_counts
from leaf_diffusion.evaluation.tasks.text import sensitivity
from leaf_diffusion.evaluation.tasks.text_attacks import Search, accuracies, attack_text, mean_queries, sensitivities
from leaf_diffusion.reports.pages.experiment import Page
from leaf_diffusion.reports.pages.zero_shot import zero_shot_page
from leaf_diffusion.runs import RunStore
from leaf_diffusion.runs.experiment_records import ClassifiedText, MinimalPairs, typed
from leaf_diffusion.runs.results import ResultRow


@dataclass(frozen=True, kw_only=True)
class ZeroShotTextOptions(TaskOptions):
    """Zero-shot text classification, clean and attacked, with the exact worst single edit."""

    anchors: Path | None = None
    """Images of the classes, a sub-folder a class: the classes as the image tower of --image-encoder sees them."""
    image_encoder: str | None = None
    """The image tower of the CLIP that the text encoders belong to: a folder, a Hub id, openclip:..."""
    exact: bool = True
    """Score every allowed single edit. About 191 queries a character: leave it out for long texts (--no-exact)."""
    attacks: tuple[str, ...] = ("charmer",)
    """As of `leaf-diffusion attack`: charmer, leaf, tokens, keyboard, worst-keyboard, ..."""
    k: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Numbers of edits."""
    n_positions: tuple[int, ...] = (20,)
    """Positions that Charmer keeps a round; further ones are tried at k=1 for the curve over queries."""
    constraints: tuple[ConstraintName, ...] = ("no-new-words",)
    """ "none" gives the figures without the constraint."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_edits(self.k)
        check_counts(self, "limit", "images")
        if (self.anchors is None) != (self.image_encoder is None):
            raise ValueError("--anchors needs --image-encoder, which sees the images, and the other way round")
        if self.anchors is not None and self.task == "world":
            raise ValueError("--anchors belongs to a --task of your own; the world draws its own images")
        if not self.constraints or not self.n_positions or not self.attacks:
            raise ValueError("--attacks, --constraints and --n-positions each need one value at least")
        if "exhaustive" in self.attacks:
            raise ValueError("--attacks: the exhaustive search is what --exact does")

    def searches(self) -> list[Search]:
        """Every attack at every k; Charmer with further numbers of positions at k=1."""
        found = []
        for name in self.attacks:
            positions = self.n_positions if name == "charmer" else (None,)
            for i, n in enumerate(positions):
                attack = attack_from_name(name, **({} if n is None else {"n_positions": n}))
                found.append(Search(name, attack, (1,) if i else self.k, n))
        return found


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
