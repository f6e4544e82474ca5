"""The one place where records become result rows: means of settings, and paired differences, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from leaf_diffusion.metrics import mean_interval
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
    encoders are compared in it (a drift from the first encoder is a difference already).
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

    @property
    def place(self) -> Hashable:
        """Equal where encoders are compared: all but the encoder and, unless the attack is transferred, its source."""
        source = self.source if self.protocol == "transfer" else None
        return (self.metric, self.protocol, source, self.attack, self.constraint, self.k, self.more, self.seeds)

    def row(
        self,
        n: int,
        mean: float,
        low: float | None = None,
        high: float | None = None,
        baseline: str | None = None,
        clusters: int | None = None,
    ) -> ResultRow:
        """The result row. What is not finite becomes None: the interval of one prompt."""
        estimate = {"mean": mean, "ci_low": low, "ci_high": high}
        known = {name: value if value is None or math.isfinite(value) else None for name, value in estimate.items()}
        place = ("encoder", "protocol", "source", "attack", "constraint", "k", "metric", "seeds")
        named = {name: getattr(self, name) for name in place}
        return parse(
            ResultRow, {**named, "baseline": baseline, "n": n, "clusters": clusters, **known, **dict(self.more)}
        )


def all_pairs(labels: Sequence[str]) -> list[tuple[str, str]]:
    """(encoder, baseline) of every difference: each one to all before it."""
    return [(second, first) for first, second in combinations(dict.fromkeys(labels), 2)]


def result_rows(
    values: Mapping[Setting, Values], pairs: Sequence[tuple[str, str]], clusters: Clusters | None = None
) -> list[ResultRow]:
    """Means with 95% intervals over units, then the paired difference of each (encoder, baseline) in the same setting.

    A difference is taken over the units that both have; a setting without values gives no row.
    """
    places: dict[Hashable, dict[str, Setting]] = {}
    for setting in values:
        places.setdefault(setting.place, {})[setting.encoder] = setting
    rows: list[ResultRow] = []
    for found in places.values():
        rows += [_row(each, None, clusters or {}, values[each]) for each in found.values() if values[each]]
        for encoder, baseline in pairs:
            if encoder not in found or baseline not in found or not found[encoder].compared:
                continue
            mine, theirs = values[found[encoder]], values[found[baseline]]
            if shared := mine.keys() & theirs.keys():
                both = ({unit: each[unit] for unit in shared} for each in (mine, theirs))
                rows.append(_row(found[encoder], baseline, clusters or {}, *both))
    return rows


def _row(
    setting: Setting, baseline: str | None, clusters: Clusters, values: Values, against: Values | None = None
) -> ResultRow:
    mine = {unit: clusters.get(unit, unit) for unit in values}
    found = mean_interval(values, against, clusters=mine, share=is_share(setting.metric))
    return setting.row(found.n, found.mean, found.ci_low, found.ci_high, baseline, found.clusters)
