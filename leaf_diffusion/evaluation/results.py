"""The one place where records become result rows: means of settings, and paired differences, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from leaf_diffusion.metrics import Interval, holm, mean_interval
from leaf_diffusion.reports.metrics import is_share
from leaf_diffusion.runs import ResultRow
from leaf_diffusion.runs.records import parse

Values = Mapping[str, float]
"""A number a unit (prompt, image)."""
Clusters = Mapping[str, str]
"""What a unit belongs to, a noun or an image, whose units fall together; a unit that is not named stands alone."""


@dataclass(frozen=True)
class Setting:
    """What a value was measured of.

    more: further columns of the result rows; seeds: noises that each unit's value is the mean over; compared: whether
    encoders are compared in it (a drift from the first encoder is a difference already); exact: no allowed edit does worse
    than the attack, by this very metric.
    """

    encoder: str
    metric: str
    protocol: str = "clean"
    source: str | None = None
    attack: str | None = None
    constraint: str | None = None
    k: int = 0
    more: tuple[tuple[str, object], ...] = ()
    seeds: int = 1
    compared: bool = True
    exact: bool = False

    @property
    def place(self) -> Hashable:
        """Equal where encoders are compared: all but the encoder and, unless the attack is transferred, its source."""
        source = self.source if self.protocol == "transfer" else None
        return (self.metric, self.protocol, source, self.attack, self.constraint, self.k, self.more, self.seeds)

    def row(
        self, n: int, mean: float, low: float | None = None, high: float | None = None, **measured: object
    ) -> ResultRow:
        """The result row. What is not finite becomes None: the interval of one prompt."""
        estimate = {"mean": mean, "ci_low": low, "ci_high": high}
        known = {name: value if value is None or math.isfinite(value) else None for name, value in estimate.items()}
        place = ("encoder", "protocol", "source", "attack", "constraint", "k", "metric", "seeds")
        named = {name: getattr(self, name) for name in place} | ({"exact": True} if self.exact else {})
        return parse(ResultRow, {**named, "baseline": None, "n": n, **known, **measured, **dict(self.more)})


@dataclass(frozen=True)
class Comparison:
    """A difference: the setting of an encoder, and the encoder that it is set against."""

    setting: Setting
    baseline: str

    def declared(self) -> dict[str, object]:
        """As a run's identity holds the one that it is for."""
        names = ("encoder", "metric", "protocol", "source", "attack", "constraint", "k")
        given = {name: getattr(self.setting, name) for name in names}
        return (
            {name: value for name, value in given.items() if value}
            | dict(self.setting.more)
            | {"baseline": self.baseline}
        )

    def is_of(self, setting: Setting, baseline: str) -> bool:
        """Whether it is that difference."""
        mine = (self.setting.encoder, self.setting.place, self.baseline)
        return mine == (setting.encoder, setting.place, baseline)


def all_pairs(labels: Sequence[str]) -> list[tuple[str, str]]:
    """(encoder, baseline) of every difference: each one to all before it."""
    return [(second, first) for first, second in combinations(dict.fromkeys(labels), 2)]


def result_rows(
    values: Mapping[Setting, Values],
    pairs: Sequence[tuple[str, str]],
    clusters: Clusters | None = None,
    main: Comparison | None = None,
) -> list[ResultRow]:
    """Means with 95% intervals over units, then the paired difference of each (encoder, baseline) in the same setting.

    A difference is taken over the units that both have; a setting without values gives no row. The p value of the `main`
    difference stands as it is; those of all others by the same metric are adjusted for each other (Holm).
    """
    places: dict[Hashable, dict[str, Setting]] = {}
    for setting in values:
        places.setdefault(setting.place, {})[setting.encoder] = setting
    rows: list[tuple[Setting, str | None, Interval]] = []
    for found in places.values():
        rows += [(each, None, _interval(each, clusters, values[each])) for each in found.values() if values[each]]
        for encoder, baseline in pairs:
            if encoder not in found or baseline not in found or not found[encoder].compared:
                continue
            mine, theirs = values[found[encoder]], values[found[baseline]]
            if shared := mine.keys() & theirs.keys():
                both = ({unit: each[unit] for unit in shared} for each in (mine, theirs))
                rows.append((found[encoder], baseline, _interval(found[encoder], clusters, *both)))
    families: dict[str | None, list[int]] = {}
    for number, (setting, against, _) in enumerate(rows):
        if against is not None:
            alone = main is not None and main.is_of(setting, against)
            families.setdefault(None if alone else setting.metric, []).append(number)
    tested: list[Mapping[str, object]] = [{} for _ in rows]
    for family, numbers in families.items():
        p_values = [rows[number][2].p for number in numbers]
        for number, p, adjusted in zip(numbers, p_values, holm(p_values), strict=True):
            tested[number] = {"p": p, "p_adjusted": adjusted} | ({"main": True} if family is None else {})
    return [
        setting.row(it.n, it.mean, it.ci_low, it.ci_high, baseline=against, clusters=it.clusters, **more)
        for (setting, against, it), more in zip(rows, tested, strict=True)
    ]


def _interval(setting: Setting, clusters: Clusters | None, values: Values, against: Values | None = None) -> Interval:
    mine = {unit: (clusters or {}).get(unit, unit) for unit in values}
    return mean_interval(values, against, clusters=mine, share=is_share(setting.metric))
