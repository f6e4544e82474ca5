"""For which prompts is the image right under every allowed edit? All of them read, drawn and judged; none is searched for.

Not in the paper, whose robust accuracies come from a search and so are upper bounds. Here every distinct reading of a
prompt's allowed single edits is drawn from the prompt's own noise, those first that move the embedding most, until an image
is wrong. Runs as `leaf-diffusion exact-images`; --help lists the options.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Self

from rich.markup import escape
from torch import nn

from leaf_diffusion.evaluation.experiment import Experiment, Records, Setting, Stage, Values, run
from leaf_diffusion.evaluation.prompts import clusters_of
from leaf_diffusion.evaluation.t2i import specification
from leaf_diffusion.evaluation.t2i.exact import FIRST, ExactDrawing, exact_values
from leaf_diffusion.evaluation.t2i.exact_options import ExactImagesOptions, load_judges
from leaf_diffusion.evaluation.t2i.setup import prepare
from leaf_diffusion.evaluation.tasks import units
from leaf_diffusion.reports.metrics import CLIP_ACCURACY
from leaf_diffusion.reports.pages.exact_images import exact_images_page
from leaf_diffusion.reports.pages.experiment import Page
from leaf_diffusion.runs.experiment_records import SettledPrompt, typed
from leaf_diffusion.runs.results import ResultRow


class ExactImages(Experiment[ExactImagesOptions]):
    name = "exact-images"
    not_identity = specification.NOT_IDENTITY

    def __init__(self, options: ExactImagesOptions) -> None:
        super().__init__(options)
        self.setup, self.judges = prepare(options.evaluation()), load_judges(options)
        self.drawing = ExactDrawing(
            self.setup, self.judges, least_score=options.least_score, most_rows=options.most_rows
        )

    def settings(self) -> Mapping[str, object]:
        return specification.identity(self.setup, self.judges)

    def stages(self) -> Sequence[Stage]:
        wanted = {
            (label, prompt.id, noise): (label, prompt, noise)
            for prompt in self.setup.prompts  # prompt by prompt: what several encoders read alike is read once
            for label in self.setup.encoders
            for noise in range(self.options.seeds)
        }
        return [units.single("prompts", wanted, self.drawing, 1, SettledPrompt)]

    def clusters(self) -> Mapping[str, str]:
        return clusters_of(self.setup.prompts)

    def values(self, records: Records) -> Mapping[Setting, Values]:
        judged = "scene_accuracy" if self.options.least_score is None else CLIP_ACCURACY.key
        return exact_values(typed(SettledPrompt, records["prompts"]), self.options.constraint, judged)

    def extra(self, records: Records) -> Mapping[str, object]:
        found = typed(SettledPrompt, records["prompts"])
        undecided = Counter(record.encoder for record in found if record.held is None)
        return {"undecided": {label: undecided[label] for label in self.labels()},
                "images": sum(record.drawn for record in found)}  # fmt: skip

    def page(self, rows: Sequence[ResultRow], records: Records) -> Page:
        options, found = self.setup.options, typed(SettledPrompt, records["prompts"])
        facts = {"prompts": str(len(self.setup.prompts)), "pipeline": options.pipeline, "edits": options.constraint,
                 "sampling steps": str(options.steps)}  # fmt: skip
        return exact_images_page(rows, found, self.labels(), self.folder, facts)

    def plan(self) -> Sequence[str]:
        return [escape(self.drawing.estimate())] if self.options.dry_run else []

    def image_bytes(self) -> int:
        return 2 * self.setup.image_bytes()

    def modules(self) -> Mapping[str, nn.Module]:
        return self.setup.modules()

    def sample(self) -> Self:
        few = copy(self)
        few.setup = replace(self.setup, prompts=self.setup.prompts[:1])
        few.drawing = ExactDrawing(few.setup, self.judges, least_score=self.options.least_score, most_rows=FIRST - 1)
        return few


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(ExactImages, ExactImagesOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
