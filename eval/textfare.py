"""The TextFARE loss, clean and attacked: how far an encoder's embedding lies from the original's clean one.

Paper: section 3, equation of TextFARE: || f_original(S) - f_encoder(S') ||^2 over S' within k character edits of S. The
attack maximises that very loss, on each encoder. Runs as `leaf-diffusion textfare` and as `python eval/textfare.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from leaf_diffusion.attacks import attack_from_name
from leaf_diffusion.evaluation.experiment import Experiment, Records, Setting, Stage, load_encoders, run
from leaf_diffusion.evaluation.options import ConstraintName, check_edits
from leaf_diffusion.evaluation.prompts import Prompt
from leaf_diffusion.evaluation.tasks import units
from leaf_diffusion.evaluation.tasks.options import PromptRunOptions
from leaf_diffusion.reports.metrics import RELATIVE_TEXTFARE, TEXTFARE
from leaf_diffusion.reports.pages.experiment import Page
from leaf_diffusion.reports.pages.textfare import textfare_page
from leaf_diffusion.runs import RunStore
from leaf_diffusion.runs.experiment_records import AttackedText, Losses, typed
from leaf_diffusion.runs.results import ResultRow
from leaf_diffusion.scoring.objectives import Drift
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import constraint_from_name


@dataclass(frozen=True, kw_only=True)
class TextFareOptions(PromptRunOptions):
    """The TextFARE loss of text encoders on clean prompts and under attacks that maximise it."""

    attacks: tuple[Literal["charmer", "leaf", "exhaustive", "random-typos"], ...] = (
        "random-typos", "leaf", "charmer", "exhaustive",
    )  # fmt: skip
    k: tuple[int, ...] = (1,)
    """Numbers of character edits; exhaustive search is exact, for k=1 only."""
    n_positions: int = 20
    """Positions that Charmer keeps a round."""
    rho: int = 50
    """Slots and characters that the LEAF attack tries a round."""
    constraint: ConstraintName = "no-new-words"
    seed: int = 0
    """Of the random attacks."""

    def __post_init__(self) -> None:
        check_edits(self.k)
        if not self.attacks:
            raise ValueError("--attacks names at least one attack")


class TextFare(Experiment[TextFareOptions]):
    name = "textfare"

    def __init__(self, options: TextFareOptions) -> None:
        super().__init__(options)
        self.prompts = options.load_prompts(32)
        self.encoders = load_encoders(options.encoders, options.device)
        self.anchor = next(iter(self.encoders.values()))
        self.objective = Drift("l2", anchor=self.anchor, feature=units.shared_feature(self.encoders))
        for label, encoder in self.encoders.items():  # a misfit shows here, before anything is made
            try:
                self.objective.goals(encoder, [self.prompts[0].text])
            except ValueError as error:
                raise ValueError(f"--encoders {label}: {error}") from error
        params = {"charmer": {"n_positions": options.n_positions}, "leaf": {"rho": options.rho}}
        self.attacks = {name: attack_from_name(name, **params.get(name, {})) for name in options.attacks}

    def settings(self) -> dict[str, object]:
        texts, feature = [prompt.text for prompt in self.prompts], str(self.objective.feature)
        return {"fingerprints": units.fingerprints(self.encoders), "texts": texts, "feature": feature}

    def stages(self) -> Sequence[Stage]:
        return [units.stage("losses", self.encoders, {prompt.id: prompt for prompt in self.prompts}, self.measure)]

    def measure(self, store: RunStore, label: str, prompts: Sequence[Prompt]) -> list[Losses]:
        """The losses of some prompts: clean, and under every attack."""
        options, texts, rows = (
            self.options,
            [prompt.text for prompt in prompts],
            [list[AttackedText]() for _ in prompts],
        )
        scorer, constraint = Scorer(self.encoders[label], self.objective), constraint_from_name(options.constraint)
        for name, attack in self.attacks.items():
            ks = [k for k in options.k if name != "exhaustive" or k == 1]
            for k, results in attack.path(texts, scorer, ks, constraint=constraint, seed=options.seed).items():
                for mine, result in zip(rows, results, strict=True):
                    mine.append(units.attacked(result, label, k, name, options.constraint))
        goals, clean = self.objective.goals(self.anchor, texts), scorer.bind(texts).clean()
        return [
            Losses(encoder=label, prompt_id=prompt.id, prompt=prompt.text, clean=loss, norm=goal.scale, attacked=mine)
            for prompt, loss, goal, mine in zip(prompts, clean, goals, rows, strict=True)
        ]

    def values(self, records: Records) -> units.Noted:
        found = units.Noted()
        for record in typed(Losses, records["losses"]):
            losses = {Setting(record.encoder, TEXTFARE.key): record.clean}
            for row in record.attacked:
                place = ("adaptive", record.encoder, row.attack, row.constraint, row.k)
                losses[Setting(record.encoder, TEXTFARE.key, *place)] = row.score
            for setting, loss in losses.items():
                found.note(setting, record.prompt_id, loss)
                found.note(replace(setting, metric=RELATIVE_TEXTFARE.key), record.prompt_id, loss / record.norm)
        return found

    def extra(self, records: Records) -> dict[str, int]:
        return units.attack_counts(row for record in typed(Losses, records["losses"]) for row in record.attacked)

    def page(self, rows: Sequence[ResultRow], records: Records) -> Page:
        facts = {"prompts": str(len(self.prompts)), "constraint": self.options.constraint}
        facts["feature"] = str(self.objective.feature)
        return textfare_page(rows, typed(Losses, records["losses"]), self.extra(records), list(self.encoders), facts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(TextFare, TextFareOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
