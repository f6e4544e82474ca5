"""What `leaf-diffusion exact-images` can be told, and who judges its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

from leaf_diffusion.evaluation.options import ConstraintName, RunOptions
from leaf_diffusion.evaluation.results import Setting
from leaf_diffusion.evaluation.t2i.judges import Judges, OpenCLIPJudge
from leaf_diffusion.evaluation.t2i.options import ImageOptions, Options, WorldPromptOptions
from leaf_diffusion.reports.metrics import EXACT
from leaf_diffusion.world import SceneJudge, load_judge_clip

WORLD_ENCODERS = ("original", "leaf", "typo-augmented")
WORLD_PROMPTS = 50


@dataclass(frozen=True, kw_only=True)
class ExactImagesOptions(RunOptions, ImageOptions, WorldPromptOptions):
    """The share of prompts whose image is right under every allowed single edit, with nothing searched and nothing assumed.

    Edits that an encoder reads alike give one image, so what is drawn are the distinct readings: few behind a defence that
    undoes most edits, thousands without. A prompt is settled at its first wrong image.
    """

    help_group: ClassVar[str] = "the comparison"
    help_first: ClassVar[tuple[str, ...]] = ("encoders", "limit", "most_rows", "output")

    encoders: tuple[str, ...] = ()
    """Labels, sources or LABEL=SOURCE, with "+canonical" or another defence at the end or not; the first is the baseline.
    Default in the world: original leaf typo-augmented, each as it is and with "+canonical:world"; elsewhere original
    original+canonical."""
    limit: int | None = None
    """Number of prompts. Default: 50 of the world's, all of a file's."""
    constraint: ConstraintName = "no-new-words"
    """Which edits are allowed. no-new-words: none that makes an English word that was not there."""
    most_rows: int | None = None
    """Readings of a prompt that are drawn at most, those that move the embedding most. A prompt of which all of these are
    right and some are left is counted as not decided. Default: all."""
    clip_score_model: str | None = None
    """As in `leaf-diffusion evaluate`. Default: the world's judge."""
    least_score: float | None = None
    """An image is right where its CLIPScore with the clean prompt is at least this: for prompts of your own, which have no
    scene that a judge could look for. Take what images that you find right have."""

    def __post_init__(self) -> None:
        if self.most_rows is not None and self.most_rows < 1:
            raise ValueError(f"--most-rows must be at least 1, got {self.most_rows}")
        scenes = self.pipeline == "world" and self.prompts is None
        if self.least_score is None and not scenes:
            raise ValueError(
                "only the embedded world's own prompts have scenes that a judge can look for; for others give --least-score, "
                "the CLIPScore from which an image is right"
            )
        if self.least_score is None and self.clip_score_model is not None:
            raise ValueError("--clip-score-model judges by --least-score: give that, too")
        if self.least_score is not None and self.clip_score_model is None and self.pipeline != "world":
            raise ValueError("--least-score needs --clip-score-model, the CLIP that judges")

    def resolved(self) -> Self:
        """The defaults that depend on the pipeline, filled in."""
        given, filled = super().resolved(), self.evaluation()
        return replace(
            given, encoders=filled.encoders, limit=filled.limit, steps=filled.steps, guidance=filled.guidance
        )

    def main_setting(self, labels: Sequence[str]) -> Setting:
        """Right under every allowed edit."""
        return Setting(labels[1], EXACT.key, "adaptive", labels[1], "every edit", self.constraint, 1, seeds=self.seeds)

    def evaluation(self) -> Options:
        """The same as options of the evaluation, whose loaders and sampler are used; no attack is planned."""
        world = self.pipeline == "world"
        bare, defence = (WORLD_ENCODERS, "+canonical:world") if world else (WORLD_ENCODERS[:1], "+canonical")
        both = tuple(f"{name}{behind}" for behind in ("", defence) for name in bare)
        limit = WORLD_PROMPTS if self.limit is None and self.prompts is None else self.limit
        shared = {each.name for each in fields(Options)} & {each.name for each in fields(self)}
        values = {name: getattr(self, name) for name in shared} | {"encoders": self.encoders or both, "limit": limit}
        return Options(**values, k=(1,), protocols=()).resolved()


def load_judges(options: ExactImagesOptions) -> Judges:
    """The scene judge, or with `least_score` the CLIP that measures."""
    if options.least_score is None:
        return Judges(None, None, SceneJudge.load(), [])
    if options.clip_score_model is None:
        return Judges(load_judge_clip(), "world:judge image features", None, [])
    return Judges(OpenCLIPJudge(options.clip_score_model, options.device), options.clip_score_model, None, [])
