"""Embedding inversion: how much of a caption can be read back from its embedding alone.

Paper: section 4, text-embedding inversion: projected gradient over token embeddings (PEZ, Wen et al. 2023), 3,000 steps at
a rate of 0.1, 100 COCO captions. Each encoder's own embedding of a caption is the target, and as many tokens are free as
the caption has. Runs as `leaf-diffusion invert` and as `python eval/inversion.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from leaf_diffusion.evaluation.experiment import Experiment, Records, Setting, Stage, load_encoders, run
from leaf_diffusion.evaluation.prompts import Prompt
from leaf_diffusion.evaluation.tasks import units
from leaf_diffusion.evaluation.tasks.inversion import InversionOptions, read_back
from leaf_diffusion.metrics.reconstruction import has_bleu
from leaf_diffusion.reports.metrics import BLEU, COSINE, TOKENS_BACK, TOKENS_IN_PLACE, WORDS_BACK
from leaf_diffusion.reports.pages.experiment import Page
from leaf_diffusion.reports.pages.inversion import NO_BLEU, inversion_page
from leaf_diffusion.runs import RunStore
from leaf_diffusion.runs.experiment_records import Inverted, typed
from leaf_diffusion.runs.results import ResultRow
from leaf_diffusion.world import seen_tokens


class InversionExperiment(Experiment[InversionOptions]):
    name = "invert"

    def __init__(self, options: InversionOptions) -> None:
        super().__init__(options)
        self.prompts = options.load_prompts(24, two=0.5)
        self.encoders = load_encoders(options.encoders, options.device)
        for encoder in self.encoders.values():
            encoder.module.requires_grad_(False)
        self.feature = units.shared_feature(self.encoders)

    def settings(self) -> dict[str, object]:
        texts, prints = [prompt.text for prompt in self.prompts], units.fingerprints(self.encoders)
        return {"fingerprints": prints, "texts": texts, "feature": str(self.feature), "bleu": has_bleu()}

    def stages(self) -> Sequence[Stage]:
        prompts = {prompt.id: prompt for prompt in self.prompts}
        return [units.stage("inversions", self.encoders, prompts, self.invert, self.options.batch_size)]

    def invert(self, store: RunStore, label: str, prompts: Sequence[Prompt]) -> list[Inverted]:
        options, texts = self.options, [prompt.text for prompt in prompts]
        vocabulary = sorted(seen_tokens()) if options.vocabulary == "seen" else None
        return read_back(self.encoders[label], label, texts, steps=options.search_steps, lr=options.learning_rate,
                         weight_decay=options.weight_decay, vocabulary=vocabulary, feature=self.feature,
                         seed=options.seed)  # fmt: skip

    def clusters(self) -> Mapping[str, str]:
        return {prompt.text: prompt.cluster for prompt in self.prompts if prompt.cluster is not None}

    def values(self, records: Records) -> units.Noted:
        found = units.Noted()
        for record in typed(Inverted, records["inversions"]):
            for metric in (COSINE, WORDS_BACK, TOKENS_BACK, TOKENS_IN_PLACE, BLEU):
                if (value := getattr(record, metric.key)) is not None:
                    found.note(Setting(record.encoder, metric.key), record.prompt, value)
        return found

    def extra(self, records: Records) -> dict[str, object]:
        found = typed(Inverted, records["inversions"])
        steps, cut = sum(record.step for record in found) / len(found), sum(record.truncated for record in found)
        return {"truncated": cut, "mean_best_step": steps, "left_out": [] if has_bleu() else [BLEU.key]}

    def page(self, rows: Sequence[ResultRow], records: Records) -> Page:
        facts = {"steps": str(self.options.search_steps), "vocabulary": self.options.vocabulary}
        facts["feature"] = str(self.feature)
        return inversion_page(rows, typed(Inverted, records["inversions"]), list(self.encoders), facts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    if not has_bleu():
        print(NO_BLEU)
    return run(InversionExperiment, InversionOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
