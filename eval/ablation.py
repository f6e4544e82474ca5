"""What each choice of the finetuning buys: rho, the constraint, the attack itself; every encoder trained alike but for it.

Paper: section 4, the rho ablation (rho in {1, 10, 50}), with and without the constraint, and robustness at k = 1..5.
Runs as `leaf-diffusion ablate` and as `python eval/ablation.py`; trained encoders stay in the run's folder.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.evaluation.experiment import Experiment, Records, Stage, load_encoders, run
from leaf_diffusion.evaluation.options import check_edits
from leaf_diffusion.evaluation.t2i.plan import content_id
from leaf_diffusion.evaluation.tasks import units
from leaf_diffusion.evaluation.tasks.ablation import AblationOptions, probe, probe_values
from leaf_diffusion.evaluation.tasks.text import TEMPLATES, load_task
from leaf_diffusion.finetune import finetune_text_encoder, read_captions
from leaf_diffusion.reports.pages.ablation import ablation_page
from leaf_diffusion.reports.pages.experiment import Page
from leaf_diffusion.runs import RunStore
from leaf_diffusion.runs.experiment_records import AttackedUnderRecipe, Trained, typed
from leaf_diffusion.runs.results import ResultRow
from leaf_diffusion.text.visible import isolated
from leaf_diffusion.world.robust import training_captions


class Ablation(Experiment[AblationOptions]):
    name = "ablate"

    def __init__(self, options: AblationOptions) -> None:
        super().__init__(options)
        self.recipes, self.encoders = options.recipes(), load_encoders(options.encoders, options.device)
        self.base, self.trained = next(iter(self.encoders.values())), dict[str, TextEncoder]()
        if taken := self.encoders.keys() & self.recipes.keys():
            raise ValueError(f"--encoders: the label {sorted(taken)[0]!r} is that of a training; write LABEL=SOURCE")
        self.captions = (training_captions(20_000) if options.captions is None
                         else read_captions(options.captions, options.column, options.split))  # fmt: skip
        self.task = load_task(options.task, images=8, column=options.task_column, split=options.task_split,
                              classes=options.classes, templates=TEMPLATES)  # fmt: skip
        self.numbers = self.task.spread(options.limit)
        check_edits(options.k, options.attack, [self.task.texts[i] for i in self.numbers])

    def labels(self) -> Sequence[str]:
        return [*self.encoders, *self.recipes]

    def settings(self) -> dict[str, object]:
        recipes = {label: asdict(recipe) for label, recipe in self.recipes.items()}
        return {"fingerprints": units.fingerprints(self.encoders), "recipes": recipes,
                "texts": self.task.named(self.numbers), "caption_list": content_id(captions=list(self.captions))}  # fmt: skip

    def stages(self) -> Sequence[Stage]:
        texts = units.numbered(self.task.texts, self.numbers)
        return [
            units.single("trainings", {label: label for label in self.recipes}, self.train, size=1),
            units.stage("texts", self.labels(), texts, self.attack, size=4),
        ]

    def place(self, label: str) -> Path:
        """The folder of a trained encoder."""
        return self.folder / "encoders" / content_id(recipe=asdict(self.recipes[label]))

    def encoder(self, label: str) -> TextEncoder:
        if label not in self.encoders and label not in self.trained:
            self.trained[label] = load_text_encoder(self.place(label), device=self.options.device)
        return (self.encoders | self.trained)[label]

    def train(self, store: RunStore, labels: Sequence[str]) -> list[Trained]:
        found = []
        for label in labels:
            folder = finetune_text_encoder(self.base, self.captions, self.place(label), self.recipes[label])
            where, fingerprint = str(folder.relative_to(self.folder)), self.encoder(label).fingerprint
            found.append(Trained(label=label, folder=where, fingerprint=fingerprint))
        return found

    def attack(self, store: RunStore, label: str, numbers: Sequence[int]) -> list[AttackedUnderRecipe]:
        options, encoder = self.options, self.encoder(label)
        return [
            probe(encoder, label, self.base, self.task, number, attack=options.attack, ks=options.k,
                  constraint=options.constraint, seed=options.seed) for number in numbers
        ]  # fmt: skip

    def clusters(self) -> Mapping[str, str]:
        return units.numbered_clusters(self.task.clusters)

    def values(self, records: Records) -> units.Noted:
        texts, options = typed(AttackedUnderRecipe, records["texts"]), self.options
        return probe_values(texts, options.attack.label, options.constraint)

    def page(self, rows: Sequence[ResultRow], records: Records) -> Page:
        labels, options = list(self.labels()), self.options
        about = (f"{options.train_steps} updates of {options.batch_size} captions each, from {isolated(labels[0])}; all "
                 "attacked alike.")  # fmt: skip
        facts = {"texts": str(len(self.numbers)), "attack": options.attack.label, "constraint": options.constraint}
        return ablation_page(rows, labels, about, facts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(Ablation, AblationOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
