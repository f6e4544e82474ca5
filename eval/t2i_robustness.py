"""Do attacked prompts still give the right images? Prompts x encoders x k x noises, and a report.

Paper: section 4, text-to-image (adaptive attacks); the transfer protocols, the paired noise and the intervals are ours.
Runs as `leaf-diffusion evaluate` and as `python eval/t2i_robustness.py`; --help lists the options.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Self

from torch import nn

from leaf_diffusion.evaluation.experiment import Comparison, Experiment, Records, Report, Setting, Stage, Values, run
from leaf_diffusion.evaluation.prompts import clusters_of
from leaf_diffusion.evaluation.t2i import setup, specification, summarise
from leaf_diffusion.evaluation.t2i.attack import PROMPTS_AT_ONCE, attack_units, save_attacks
from leaf_diffusion.evaluation.t2i.distribution import distribution_rows, sensitivity_rows
from leaf_diffusion.evaluation.t2i.generate import Drawing
from leaf_diffusion.evaluation.t2i.judges import load_judges
from leaf_diffusion.evaluation.t2i.options import Options
from leaf_diffusion.evaluation.t2i.plan import by_id
from leaf_diffusion.evaluation.t2i.score import AT_ONCE, Scoring
from leaf_diffusion.reports import write_report
from leaf_diffusion.runs import RunStore
from leaf_diffusion.runs.experiment_records import typed
from leaf_diffusion.runs.records import AttackRecord, ImageRecord, ScoreRecord
from leaf_diffusion.runs.results import ResultRow


class TextToImage(Experiment[Options]):
    name, command = "t2i-robustness", "evaluate"
    not_identity = specification.NOT_IDENTITY

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.setup = setup.prepare(options)
        self.judges = load_judges(options)
        self.costs = specification.swap_costs(options.swap_cost, self.setup) if options.swap_cost else None

    def settings(self) -> Mapping[str, object]:
        return specification.identity(self.setup, self.judges)

    def stages(self) -> Sequence[Stage[Any]]:
        plan, drawing = self.setup.plan, Drawing(self.setup)
        images = by_id(plan.images())
        return [
            Stage("attacks", by_id(plan.attacks()), lambda _, units: attack_units(self.setup, units), PROMPTS_AT_ONCE,
                  AttackRecord, together=lambda _, unit: (unit.source, unit.prompt.id), apart=lambda _, unit: unit.source,
                  after=lambda store: save_attacks(self.setup, store)),
            Stage("images", images, drawing, self.options.batch_size, ImageRecord, together=drawing.image, apart=drawing.weights),
            Stage("scores", images, Scoring(self.setup, self.judges), AT_ONCE, ScoreRecord),
        ]  # fmt: skip

    def pairs(self) -> Sequence[tuple[str, str]]:
        return summarise.pairs_of(self.labels())

    def main_comparison(self) -> Comparison | None:
        return summarise.main_comparison(self.setup, self.judges)

    def clusters(self) -> Mapping[str, str]:
        return clusters_of(self.setup.prompts)

    def values(self, records: Records) -> Mapping[Setting, Values]:
        images, scores = typed(ImageRecord, records["images"]), typed(ScoreRecord, records["scores"])
        return summarise.setting_values(self.setup.plan, images, scores, *summarise.named_attack(self.setup))

    def further_rows(self, store: RunStore, records: Records) -> Sequence[ResultRow]:
        images, plan = typed(ImageRecord, records["images"]), self.setup.plan
        distances = distribution_rows(plan, store, images, self.judges, *summarise.named_attack(self.setup))
        return [*distances, *(sensitivity_rows(self.setup) if self.options.world else [])]

    def extra(self, records: Records) -> Mapping[str, object]:
        attacks, images = typed(AttackRecord, records["attacks"]), typed(ImageRecord, records["images"])
        counts = {"attacks": summarise.attack_counts(attacks), "counts": summarise.image_counts(images)}
        counts |= {} if self.costs is None else {"swap_cost": self.costs}
        return {**counts, **self.judges.described(self.setup)}

    def report(self, store: RunStore, rows: Sequence[ResultRow], records: Records) -> Report:
        counts = summarise.attack_counts(typed(AttackRecord, records["attacks"]))
        return Report(write_report(store.folder), [summarise.main_figures(rows)], summarise.said(counts))

    def folder_name(self) -> str:
        return self.setup.name

    def plan(self) -> Sequence[str]:
        return [*self.setup.said(), *self.judges.said(self.setup)]

    def image_bytes(self) -> int:
        return self.setup.image_bytes()

    def modules(self) -> Mapping[str, nn.Module]:
        return self.setup.modules()

    def sample(self) -> Self:
        few = copy(self)
        few.setup = replace(self.setup, plan=replace(self.setup.plan, prompts=self.setup.prompts[:1]))
        return few


def main(argv: Sequence[str] | None = None) -> int:
    """Run, or continue, one evaluation; returns the exit status (2: the input is wrong, nothing was started)."""
    return run(TextToImage, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
