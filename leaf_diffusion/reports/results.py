"""Result rows, checked, looked up and worded: what every report shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from leaf_diffusion.metrics import Distance, cmmd, frechet_distance, kid, pixel_rmse
from leaf_diffusion.runs import FIELDS, ResultRow, Run
from leaf_diffusion.runs.read import damaged_results
from leaf_diffusion.runs.results import EvaluationResults
from leaf_diffusion.text.visible import isolated

REPORT = "report.html"
"""The page of a run, in its folder: what is written last."""


class Estimate(Protocol):
    """A mean or a difference, and its 95% interval where there is one."""

    @property
    def mean(self) -> float | None: ...
    @property
    def ci_low(self) -> float | None: ...
    @property
    def ci_high(self) -> float | None: ...
    @property
    def n(self) -> int: ...
    @property
    def clusters(self) -> int | None:
        """Independent units among the n; None where it was not counted."""

    @property
    def p_adjusted(self) -> float | None:
        """Of a difference, with what else is compared taken into account; None where it was not."""


@dataclass(frozen=True)
class Metric:
    """How a metric is shown. scale: 100 shows shares as percent; bounds: what a search leaves of it bounds robustness.

    A metric with a function is measured, averaged and shown by every evaluation: `of_images` is given an attacked image and
    the clean one of the same encoder and noise, `of_sets` the features of a setting's images and of real ones.
    """

    key: str
    title: str
    meaning: str
    higher_is_better: bool = True
    scale: float = 1.0
    digits: int = 1
    unit: str = ""
    bounds: bool = True
    of_images: Callable[[Image.Image, Image.Image], float] | None = None
    of_sets: Callable[[np.ndarray, np.ndarray], Distance] | None = None

    def show(self, value: float | None) -> str:
        return "–" if value is None else f"{self._round(value):.{self.digits}f}{self.unit}".replace("-", "−")

    def show_difference(self, value: float | None) -> str:
        """With its sign; a difference of percentages is in points."""
        return "–" if value is None else f"{self._round(value):+.{self.digits}f}".replace("-", "−")

    def _round(self, value: float) -> float:
        return round(value * self.scale, self.digits) + 0.0  # never "-0"

    def show_interval(self, row: Estimate) -> str:
        """ "60 to 82", or "" where there is none (one prompt, or a distance between sets)."""
        if row.ci_low is None or row.ci_high is None:
            return ""
        low, high = (f"{self._round(end):.{self.digits}f}" for end in (row.ci_low, row.ci_high))
        return f"{low} to {high}".replace("-", "−")


def sample_said(rows: Iterable[Estimate | None]) -> str:
    """ "60", "352 (44 independent)" where prompts fall together; a span where they differ."""
    known = [row for row in rows if row is not None]
    clusters = [row.clusters for row in known if row.clusters is not None and row.clusters < row.n]
    return _span([row.n for row in known]) + (f" ({_span(clusters)} independent)" if clusters else "")


def _span(numbers: Sequence[int]) -> str:
    return "–".join(map(str, dict.fromkeys((min(numbers), max(numbers)))))


METRICS = {
    metric.key: metric
    for metric in (
        Metric(
            "scene_accuracy",
            "Right images",
            "share of images in which the scene judge finds every object and colour of the clean prompt",
            scale=100,
            digits=0,
            unit="%",
        ),
        Metric("clip_score", "CLIPScore", "100 × cosine between image and clean prompt, by a CLIP nobody attacked"),
        Metric(
            "drift",
            "Drift",
            "difference between the attacked and the clean image of the same encoder and noise, RMSE of pixels in 0 to 1",
            higher_is_better=False,
            digits=3,
            of_images=pixel_rmse,
        ),
        Metric(
            "drift_features",
            "Drift in features",
            "the same in the judge's features, 1 − cosine",
            higher_is_better=False,
            digits=3,
        ),
        Metric(
            "clip_score_attacked_caption",
            "CLIPScore to the attacked prompt",
            "the same against the attacked prompt: high means that the image follows the misspelling",
            bounds=False,
        ),
        Metric(
            "sensitivity",
            "Sensitivity",
            "share of minimal pairs (cat, hat) that the encoder tells apart; a deaf encoder would pass for robust",
            scale=100,
            digits=0,
            unit="%",
        ),
        Metric("kid", "KID", "unbiased, polynomial kernel of degree 3", higher_is_better=False, digits=4, of_sets=kid),
        Metric("cmmd", "CMMD", "Gaussian kernel, σ = 10, × 1000", higher_is_better=False, digits=2, of_sets=cmmd),
        Metric(
            "frechet",
            "Fréchet distance",
            "falls with n: compare equal n only",
            higher_is_better=False,
            digits=2,
            of_sets=frechet_distance,
        ),
    )
}
OF_IMAGES = {key: metric.of_images for key, metric in METRICS.items() if metric.of_images}
OF_SETS = {key: metric.of_sets for key, metric in METRICS.items() if metric.of_sets}
_FIRST = ("scene_accuracy", "clip_score", "drift", "drift_features", "clip_score_attacked_caption")
PAIRED = (*_FIRST, *(key for key in OF_IMAGES if key not in _FIRST))
"""Metrics of prompts, in the order of the tables."""
SETS = tuple(OF_SETS)
SCORE_FIELDS = FIELDS | {key: key for key in OF_IMAGES}
"""Metric of prompts -> field of a score record."""


@dataclass(frozen=True, order=True)
class Setting:
    """What the prompts went through. source: "" when clean or adaptive (then it is the encoder itself)."""

    protocol: str
    source: str = ""
    k: int = 0

    @property
    def label(self) -> str:
        if self.protocol == "clean":
            return "clean prompts"
        if self.protocol == "floor":
            return "clean prompts, another noise"
        return f"{'attacked on itself' if self.protocol == 'adaptive' else f'attacked on {isolated(self.source)}'}, k={self.k}"


def setting_of(protocol: str, source: str | None, k: int | None) -> Setting:
    """Of a result row, or of an image."""
    return Setting(protocol, source or "" if protocol == "transfer" else "", k or 0)


def _setting(row: ResultRow) -> Setting:
    return setting_of(row.protocol, row.source, row.k)


class Results:
    """The rows of results.json by (encoder, setting, metric, baseline). Raises ValueError on no rows.

    `Results.of` reads them from a run and checks them.
    """

    def __init__(
        self, rows: Iterable[ResultRow], run: object = "the run", spaces: Mapping[str, str] | None = None
    ) -> None:
        everything = list(rows)
        self.rows = [row for row in everything if not _of_a_swap(row)]
        self._swap = {(r.encoder, r.metric): r for r in everything if _of_a_swap(r) and r.baseline is None}
        self._spaces = spaces or {}
        if not self.rows:
            raise ValueError(f"{run} has no results yet: give the command that started it again, it goes on to the end")
        self._index = {(r.encoder, _setting(r), r.metric, r.baseline): r for r in self.rows}
        self.encoders = list(dict.fromkeys(row.encoder for row in self.rows))
        self.declared = next((r for r in self.rows if r.main and r.baseline is not None and r.metric in METRICS), None)
        self.baseline = next((r.baseline for r in self.rows if r.baseline is not None), self.encoders[0])
        self.encoders.sort(key=lambda label: label != self.baseline)
        self.settings = list(dict.fromkeys(_setting(r) for r in self.rows if r.protocol != "floor"))
        sources = list(dict.fromkeys(setting.source for setting in self.settings))
        self.settings.sort(
            key=lambda s: (("clean", "adaptive", "transfer").index(s.protocol), sources.index(s.source), s.k)
        )
        self.ks = sorted({s.k for s in self.settings if s.k})

    @classmethod
    def of(cls, run: Run) -> Results:
        """The results of a run of the text-to-image evaluation. Raises ValueError naming file, row and field where one
        of them does not fit."""
        found = run.read_results(EvaluationResults)
        labels = {row.encoder for row in found.rows}
        for number, row in enumerate(found.rows):
            if row.baseline is not None and row.baseline not in labels:
                wrong = f'the field "rows", item {number}, the field "baseline" has to be an encoder of these rows'
                raise damaged_results(run.folder, wrong)
        one = {} if found.feature_space is None else dict.fromkeys(SETS, found.feature_space)
        return cls(found.rows, run.folder, one | found.feature_spaces)

    def get(self, encoder: str, setting: Setting, metric: str, baseline: str | None = None) -> ResultRow | None:
        return self._index.get((encoder, setting, metric, baseline))

    def rows_of(self, metric: str, *, paired: bool = False) -> list[ResultRow]:
        """The means, or the differences, by a metric."""
        return [row for row in self.rows if row.metric == metric and (row.baseline is not None) == paired]

    def has(self, metric: str) -> bool:
        """Whether some encoder's mean was measured."""
        mine = (row for row in self.rows if row.metric == metric and row.protocol != "floor")
        return any(row.mean is not None and row.baseline is None for row in mine)

    def swap_drift(self, encoder: str, metric: str) -> ResultRow | None:
        """How far the encoder's clean images are from the baseline's ("drift" or "drift_features")."""
        return self._swap.get((encoder, metric))

    def space(self, metric: str) -> str:
        """The feature space of a distance between sets; "unrecorded" where nobody wrote it down."""
        return self._spaces.get(metric, "unrecorded")

    def settings_of(self, metric: str) -> list[Setting]:
        found = {_setting(row) for row in self.rows if row.metric == metric and row.baseline is None}
        return [setting for setting in self.settings if setting in found]

    @property
    def main(self) -> Metric | None:
        """The metric to lead with: of the declared comparison, else right images, CLIPScore or drift."""
        if self.declared is not None:
            return METRICS[self.declared.metric]
        return next((METRICS[key] for key in PAIRED if self.has(key)), None)

    @property
    def robust(self) -> str | None:
        """The encoder to set against the baseline: of the declared comparison, else "leaf", else the first that is no
        defence, else any other."""
        if self.declared is not None:
            return self.declared.encoder
        others = [label for label in self.encoders if label != self.baseline]
        return min(others, key=lambda label: (label != "leaf", "+" in label, others.index(label)), default=None)

    @property
    def focus(self) -> Setting | None:
        """The setting to lead with: of the declared comparison, else the weakest adaptive attack, else the weakest one
        transferred from the baseline."""
        if self.declared is not None and self.declared.k:
            return _setting(self.declared)
        attacked = [s for s in self.settings if s.k]
        return min(attacked, key=lambda s: (s.protocol != "adaptive", s.source != self.baseline, s.k), default=None)

    @property
    def floor(self) -> ResultRow | None:
        """Drift with no attack at all, only another noise."""
        return next((r for r in self.rows if r.protocol == "floor" and r.metric == "drift"), None)


def _of_a_swap(row: ResultRow) -> bool:
    """Drift is an attack's everywhere else."""
    return row.protocol == "clean" and row.metric.startswith("drift")
