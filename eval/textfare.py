"""The TextFARE loss, clean and attacked: how far an encoder's embedding lies from the original's clean one.

Paper: section 3, equation of TextFARE: || f_original(S) - f_encoder(S') ||^2 over S' within k character edits of S. The
attack maximises that very loss, on each encoder. Runs as `leaf-diffusion textfare` and as `python eval/textfare.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from leaf_diffusion.evaluation.experiment import Experiment, Records, Stage, load_encoders, run
from leaf_diffusion.evaluation.prompts import Prompt, clusters_of
from leaf_diffusion.evaluation.tasks import units
from leaf_diffusion.evaluation.tasks.textfare import TextFareOptions, loss_values, measure_losses
from leaf_diffusion.reports.pages.experiment import Page
from leaf_diffusion.reports.pages.textfare import textfare_page
from leaf_diffusion.runs import RunStore
from leaf_diffusion.runs.experiment_records import Losses, typed
from leaf_diffusion.runs.results import ResultRow
from leaf_diffusion.scoring.objectives import Drift


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
        self.attacks = options.chosen()

    def settings(self) -> dict[str, object]:
        texts, feature = [prompt.text for prompt in self.prompts], str(self.objective.feature)
        return {"fingerprints": units.fingerprints(self.encoders), "texts": texts, "feature": feature}

    def stages(self) -> Sequence[Stage]:
        return [units.stage("losses", self.encoders, {prompt.id: prompt for prompt in self.prompts}, self.measure)]

    def measure(self, store: RunStore, label: str, prompts: Sequence[Prompt]) -> list[Losses]:
        options = self.options
        return measure_losses(self.encoders[label], label, self.objective, self.attacks, prompts, ks=options.k,
                              constraint=options.constraint, seed=options.seed)  # fmt: skip

    def clusters(self) -> Mapping[str, str]:
        return clusters_of(self.prompts)

    def values(self, records: Records) -> units.Noted:
        return loss_values(typed(Losses, records["losses"]))

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
