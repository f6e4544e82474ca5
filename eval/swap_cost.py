"""What does a robust text encoder cost on clean prompts, and with the files that people load into a Stable Diffusion?

Plain prompts, negative prompts, long ones, a token learnt by textual inversion and a LoRA, both made for the encoder
that is replaced. Runs as `leaf-diffusion swap-cost` and as `python eval/swap_cost.py`; --help lists the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import ClassVar

from leaf_diffusion.evaluation.experiment import Experiment, Records, Stage, run
from leaf_diffusion.evaluation.swap_cost.conditions import Condition, identity, make_conditions
from leaf_diffusion.evaluation.swap_cost.files import train_file, translate_token
from leaf_diffusion.evaluation.swap_cost.measure import (
    Series,
    described,
    draw_series,
    score_series,
    series_units,
    swap_clusters,
    swap_values,
)
from leaf_diffusion.evaluation.swap_cost.setup import SwapCostOptions, load
from leaf_diffusion.evaluation.t2i.judges import load_judges
from leaf_diffusion.evaluation.tasks import units
from leaf_diffusion.reports.pages.experiment import Page
from leaf_diffusion.reports.pages.swap_cost import swap_cost_page
from leaf_diffusion.runs import RunStore
from leaf_diffusion.runs.experiment_records import SwapImage, SwapScore, TrainedFile, typed
from leaf_diffusion.runs.results import ResultRow


class SwapCost(Experiment[SwapCostOptions]):
    name = "swap-cost"
    not_identity: ClassVar[Sequence[str]] = ("batch_size", "prompts", "textual_inversion", "lora")

    def __init__(self, options: SwapCostOptions) -> None:
        super().__init__(options)
        self.setup = load(options)
        self.judges = load_judges(self.setup.options)
        self.encoders = {label: one.base for label, one in self.setup.encoders.items()}

    def pairs(self) -> Sequence[tuple[str, str]]:
        return [(label, self.labels()[0]) for label in self.labels()[1:]]

    def settings(self) -> dict[str, object]:
        return identity(self.setup, self.options, self.judges)

    def stages(self) -> Sequence[Stage]:
        """Train what the world lacks, translate the token, draw every condition with every encoder, score."""
        self.conditions, self.left_out = make_conditions(self.setup, self.options, self.folder)
        keys = {condition.key for condition in self.conditions}
        own = {"token": self.options.textual_inversion is None, "lora": self.options.lora is None}
        self.trained = {key: key for key in own if own[key] and key in keys}
        others = {label: label for label in self.labels()[1:]} if "translated" in keys else {}
        places = series_units(self.conditions, self.labels())
        return [
            units.single("trainings", self.trained, self.train, 1),
            units.single("translations", others, self.translate, 1),
            units.grouped("images", places, self.draw, self.setup.options.batch_size, SwapImage),
            units.grouped("scores", places, self.score, self.setup.options.batch_size),
        ]

    def train(self, store: RunStore, keys: Sequence[str]) -> list[TrainedFile]:
        steps, seed = self.options.train_steps, self.options.seed
        return [train_file(self.setup, self.condition(key), self.folder, steps=steps, seed=seed) for key in keys]

    def translate(self, store: RunStore, labels: Sequence[str]) -> list[TrainedFile]:
        learnt, wanted = self.condition("token"), self.condition("translated")
        return [translate_token(self.setup, learnt, wanted, label, self.folder) for label in labels]

    def condition(self, key: str) -> Condition:
        return next(condition for condition in self.conditions if condition.key == key)

    def draw(self, store: RunStore, series: Series, numbers: Sequence[int]) -> list[SwapImage]:
        return draw_series(store, self.setup, series, numbers, self.options.seed)

    def score(self, store: RunStore, series: Series, numbers: Sequence[int]) -> list[SwapScore]:
        style = series.condition.key in ("plain", "lora") and "lora" in self.trained
        return score_series(store, series, numbers, self.labels()[0], self.judges, style=style)

    def clusters(self) -> dict[str, str]:
        return swap_clusters(self.conditions)

    def values(self, records: Records) -> units.Noted:
        return swap_values(typed(SwapScore, records["scores"]))

    def extra(self, records: Records) -> dict[str, object]:
        found = [each.model_dump() for each in described(self.conditions, typed(SwapImage, records["images"]))]
        return {"feature_space": self.judges.space, "conditions": found, "left_out": self.left_out}

    def page(self, rows: Sequence[ResultRow], records: Records) -> Page:
        images, scores = typed(SwapImage, records["images"]), typed(SwapScore, records["scores"])
        facts = {"prompts": str(len(self.setup.prompts)), "pipeline": self.options.pipeline,
                 "sampling steps": str(self.setup.options.steps), "seed": str(self.options.seed)}  # fmt: skip
        conditions = described(self.conditions, images)
        return swap_cost_page(rows, images, scores, conditions, self.labels(), self.folder, facts, self.left_out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(SwapCost, SwapCostOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
