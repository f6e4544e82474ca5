"""The result in one sentence, computed from the rows and worded by what the interval allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leaf_diffusion.reports.metrics import attack_notes
from leaf_diffusion.reports.results import Metric, Results, Setting, sample_said, setting_of
from leaf_diffusion.reports.verdicts import verdict
from leaf_diffusion.runs import ResultRow
from leaf_diffusion.text.visible import isolated

UNITS = {"words": "word", "tokens": "token"}
"""What the attacks count that do not count characters, by their labels."""
_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}


@dataclass(frozen=True)
class Headline:
    """claim and evidence: the sentence; clean: what the encoder costs without an attack; others: the other encoders;
    notes: what the figures under attack are.

    verdict: what `results.verdict` says, or "none" (nothing to compare).
    """

    claim: str
    evidence: str = ""
    clean: str = ""
    others: str = ""
    verdict: str = "none"
    notes: Sequence[str] = ()

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.claim} {self.evidence}".strip()

    @property
    def whole(self) -> str:
        """All that it says."""
        return " ".join(filter(None, (self.text, self.clean, self.others, *self.notes)))


def headline(results: Results) -> Headline:
    """The comparison that the run declared; else the main metric of the robust encoder against the baseline in the focus
    setting, which is exploratory."""
    metric, robust, focus = results.main, results.robust, results.focus
    if metric is None or focus is None:
        return Headline("This run holds no attacked images, so it says nothing about robustness.")
    theirs = results.get(results.baseline, focus, metric.key)
    if robust is None or theirs is None:
        value = (
            "" if theirs is None else f": {metric.title.lower()} {metric.show(theirs.mean)} (n={sample_said([theirs])})"
        )
        return Headline(
            f"{_where(results, focus)} the encoder “{isolated(results.baseline)}” stands alone{value}.",
            notes=attack_notes([theirs], metric),
        )
    mine, difference = (results.get(robust, focus, metric.key, baseline) for baseline in (None, results.baseline))
    if mine is None or difference is None:
        return Headline(
            f"{_where(results, focus)} “{isolated(robust)}” and “{isolated(results.baseline)}” were not measured together."
        )
    claim, evidence = _sentence(results, metric, focus, robust, mine, theirs, difference)
    clean, others = _clean(results, metric), _others(results, metric, focus)
    return Headline(claim, evidence, clean, others, verdict(difference, metric), attack_notes([mine], metric))


def _sentence(
    results: Results,
    metric: Metric,
    focus: Setting,
    robust: str,
    mine: ResultRow,
    theirs: ResultRow,
    difference: ResultRow,
) -> tuple[str, str]:
    a, b = metric.show(mine.mean), metric.show(theirs.mean)
    if metric.key == "scene_accuracy":
        body = f"the encoder “{isolated(robust)}” keeps {a} of the images right, “{isolated(results.baseline)}” {b}"
    elif metric.higher_is_better:
        body = f"the images of “{isolated(robust)}” reach a {metric.title} of {a}, those of “{isolated(results.baseline)}” {b}"
    else:
        body = f"the images of “{isolated(robust)}” move by {a}, those of “{isolated(results.baseline)}” by {b}"
    n = f"n={sample_said([difference])} prompt" + ("s" if difference.n != 1 else "")
    size = metric.show_difference(difference.mean) + (" points" if metric.unit == "%" else "")
    interval = metric.show_interval(difference)
    lead, remark = {
        "better": ("", ""),
        "worse": (f"“{isolated(robust)}” does worse: ", ""),
        "exploratory": ("an exploratory comparison: ", ""),
        "open": ("this run shows no clear difference: ", ", which includes 0"),
        "few": ("this run is too small to tell: ", ", of fewer than ten independent prompts"),
        "unknown": ("this run is too small to tell: ", ""),
    }[verdict(difference, metric)]
    spread = f"95% interval {interval}{remark}" if interval else "no interval from one prompt"
    declared = "; the main comparison, declared before the run" if difference.main else ""
    return f"{_where(results, focus)} {lead}{body}", f"({n}, difference {size}, {spread}{declared})."


def _where(results: Results, setting: Setting) -> str:
    rows = [row for row in results.rows if setting_of(row.protocol, row.source, row.k) == setting]
    units = {UNITS.get(name, "character") for row in rows for name in (row.attack or "").split("+")}
    count = f"{_NUMBERS.get(setting.k, setting.k)}-{units.pop() if len(units) == 1 else 'edit'}"
    if setting.protocol == "adaptive":
        return f"Under {count} adaptive attacks (k={setting.k})"
    return f"Under {count} attacks found on “{isolated(setting.source)}” (k={setting.k})"


def _clean(results: Results, metric: Metric) -> str:
    """What the robust encoder costs on clean prompts."""
    clean, robust = Setting("clean"), results.robust
    if robust is None or not metric.higher_is_better:
        return ""
    mine, theirs = (results.get(label, clean, metric.key) for label in (robust, results.baseline))
    difference = results.get(robust, clean, metric.key, results.baseline)
    if mine is None or theirs is None or difference is None:
        return ""
    interval = metric.show_interval(difference)
    size = metric.show_difference(difference.mean) + (" points" if metric.unit == "%" else "")
    spread = f", 95% interval {interval}" if interval else ""
    values = f"“{isolated(robust)}” {metric.show(mine.mean)}, “{isolated(results.baseline)}” {metric.show(theirs.mean)}"
    return f"Without an attack: {values} (difference {size}{spread})."


def _others(results: Results, metric: Metric, focus: Setting) -> str:
    """Controls and defences under the same attack: what a robust encoder has to beat beside the original."""
    labels = [label for label in results.encoders if label not in (results.robust, results.baseline)]
    rows = [(label, results.get(label, focus, metric.key)) for label in labels]
    said = [f"“{isolated(label)}” {metric.show(row.mean)}" for label, row in rows if row is not None]
    return f"The other encoders under these attacks: {', '.join(said)}." if said else ""
