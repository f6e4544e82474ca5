"""Result rows, checked, looked up and worded: what every report shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from leaf_diffusion.metrics import Distance, cmmd, frechet_distance, kid, pixel_rmse
from leaf_diffusion.runs import FIELDS, Run
from leaf_diffusion.runs.costs import SwapCosts
from leaf_diffusion.runs.records import Count, Number, Protocol, Typed, parse
from leaf_diffusion.text.visible import isolated

Row = Mapping[str, Any]
REPORT = "report.html"
"""The page of a run, in its folder: what is written last."""


class AttackSet(Typed):
    """An attack set of the results: how many prompts, and the means over them."""

    source: str
    k: Count
    n: Count
    unchanged: Count
    truncated: Count
    distance: Number | None
    score: Number | None
    queries: Number | None
    unseen_tokens: Number | None


class Counts(Typed):
    """How many images there are, of how many drawings, how many of a truncated prompt or of the clean one."""

    images: Count | None = None
    drawn: Count | None = None
    truncated: Count | None = None
    given_unchanged: Count | None = None


class Rest(Typed):
    """What results.json of the text-to-image evaluation holds beside its rows."""

    feature_space: str | None = None
    feature_spaces: dict[str, str] = Field(default_factory=dict)
    swap_cost: SwapCosts | None = None
    real_images: Count | None = None
    counts: Counts = Counts()
    attacks: list[AttackSet] = Field(default_factory=list)


class _Protocolled(Typed):
    protocol: Protocol


@dataclass(frozen=True)
class Metric:
    """How a metric is shown. scale: 100 shows shares as percent.

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
    of_images: Callable[[Image.Image, Image.Image], float] | None = None
    of_sets: Callable[[np.ndarray, np.ndarray], Distance] | None = None

    def show(self, value: float | None) -> str:
        return "–" if value is None else f"{self._round(value):.{self.digits}f}{self.unit}".replace("-", "−")

    def show_difference(self, value: float | None) -> str:
        """With its sign; a difference of percentages is in points."""
        return "–" if value is None else f"{self._round(value):+.{self.digits}f}".replace("-", "−")

    def _round(self, value: float) -> float:
        return round(value * self.scale, self.digits) + 0.0  # never "-0"

    def show_interval(self, row: Row) -> str:
        """ "60 to 82", or "" where there is none (one prompt, or a distance between sets)."""
        if row.get("ci_low") is None or row.get("ci_high") is None:
            return ""
        low, high = (f"{self._round(row[name]):.{self.digits}f}" for name in ("ci_low", "ci_high"))
        return f"{low} to {high}".replace("-", "−")


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


def setting_of(row: Row) -> Setting:
    own = row["protocol"] != "transfer"
    return Setting(row["protocol"], "" if own else row["source"] or "", row["k"] or 0)


class Results:
    """The rows of results.json by (encoder, setting, metric, baseline). Raises ValueError on no rows.

    `Results.of` reads them from a run and checks them.
    """

    def __init__(self, rows: Iterable[Row], run: object = "the run", spaces: Mapping[str, str] | None = None) -> None:
        everything = list(rows)
        self.rows = [row for row in everything if not _of_a_swap(row)]
        self._swap = {(r["encoder"], r["metric"]): r for r in everything if _of_a_swap(r) and r["baseline"] is None}
        self._spaces = spaces or {}
        if not self.rows:
            raise ValueError(f"{run} has no results yet: give the command that started it again, it goes on to the end")
        self._index = {(r["encoder"], setting_of(r), r["metric"], r["baseline"]): r for r in self.rows}
        self.encoders = list(dict.fromkeys(row["encoder"] for row in self.rows))
        self.baseline = next((r["baseline"] for r in self.rows if r["baseline"] is not None), self.encoders[0])
        self.encoders.sort(key=lambda label: label != self.baseline)
        self.settings = list(dict.fromkeys(setting_of(r) for r in self.rows if r["protocol"] != "floor"))
        sources = list(dict.fromkeys(setting.source for setting in self.settings))
        self.settings.sort(
            key=lambda s: (("clean", "adaptive", "transfer").index(s.protocol), sources.index(s.source), s.k)
        )
        self.ks = sorted({s.k for s in self.settings if s.k})

    @classmethod
    def of(cls, run: Run) -> Results:
        """The results of a run of the text-to-image evaluation. Raises ValueError naming file, row and field where one
        of them does not fit."""
        found = run.results
        labels = {row["encoder"] for row in found["rows"]} | {None}
        for number, row in enumerate(found["rows"]):
            _check(run, f"row {number}", _Protocolled, row)
            if row["baseline"] not in labels:
                raise _damaged(run, f"row {number}", 'the field "baseline" has to be an encoder of these rows')
        _check(run, "beside the rows", Rest, found)
        one = (
            dict.fromkeys(SETS, found["feature_space"]) if found.get("feature_space") else {}
        )  # before there were several
        return cls(found["rows"], run.folder, one | found.get("feature_spaces", {}))

    def get(self, encoder: str, setting: Setting, metric: str, baseline: str | None = None) -> Row | None:
        return self._index.get((encoder, setting, metric, baseline))

    def has(self, metric: str) -> bool:
        """Whether some encoder's mean was measured."""
        mine = (row for row in self.rows if row["metric"] == metric and row["protocol"] != "floor")
        return any(row["mean"] is not None and row["baseline"] is None for row in mine)

    def swap_drift(self, encoder: str, metric: str) -> Row | None:
        """How far the encoder's clean images are from the baseline's ("drift" or "drift_features")."""
        return self._swap.get((encoder, metric))

    def space(self, metric: str) -> str:
        """The feature space of a distance between sets; "unrecorded" where nobody wrote it down."""
        return self._spaces.get(metric, "unrecorded")

    def settings_of(self, metric: str) -> list[Setting]:
        found = {setting_of(row) for row in self.rows if row["metric"] == metric and row["baseline"] is None}
        return [setting for setting in self.settings if setting in found]

    @property
    def main(self) -> Metric | None:
        """The metric to lead with: right images where scenes are known, else CLIPScore, else drift."""
        return next((METRICS[key] for key in PAIRED if self.has(key)), None)

    @property
    def robust(self) -> str | None:
        """The encoder to set against the baseline: "leaf", else the first that is no defence, else any other."""
        others = [label for label in self.encoders if label != self.baseline]
        return min(others, key=lambda label: (label != "leaf", "+" in label, others.index(label)), default=None)

    @property
    def focus(self) -> Setting | None:
        """The setting to lead with: the weakest adaptive attack, else the weakest one transferred from the baseline."""
        attacked = [s for s in self.settings if s.k]
        return min(attacked, key=lambda s: (s.protocol != "adaptive", s.source != self.baseline, s.k), default=None)

    @property
    def floor(self) -> Row | None:
        """Drift with no attack at all, only another noise."""
        return next((r for r in self.rows if r["protocol"] == "floor" and r["metric"] == "drift"), None)


def _of_a_swap(row: Row) -> bool:
    """Drift is an attack's everywhere else."""
    return row["protocol"] == "clean" and str(row["metric"]).startswith("drift")


def _check(run: Run, where: str, model: type[Typed], found: object) -> None:
    try:
        parse(model, found)
    except ValueError as error:
        raise _damaged(run, where, error) from error


def _damaged(run: Run, where: str, wrong: object) -> ValueError:
    return ValueError(f"{run.folder / 'results.json'} is damaged, {where}: {wrong}; give the run's command again")
