"""What the experiments share: units of work by encoder, values by setting, attacks as they are recorded."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from leaf_diffusion.attacks import AttackResult
from leaf_diffusion.encoders.base import Feature
from leaf_diffusion.evaluation.attack_sets import attacked_text
from leaf_diffusion.evaluation.experiment import Setting, Stage
from leaf_diffusion.evaluation.t2i.plan import content_id
from leaf_diffusion.runs import RunStore
from leaf_diffusion.runs.experiment_records import AttackedText, Measured
from leaf_diffusion.runs.records import Record

U = TypeVar("U")
K = TypeVar("K")
P = TypeVar("P")
L = TypeVar("L", bound=Hashable)


class HasFingerprint(Protocol):
    """An encoder of texts or of images."""

    @property
    def fingerprint(self) -> str: ...


class HasProjection(Protocol):
    """A text encoder that may lack a projection."""

    @property
    def has_projection(self) -> bool: ...


def fingerprints(encoders: Mapping[str, HasFingerprint]) -> dict[str, str]:
    """Of each encoder, by its label."""
    return {label: encoder.fingerprint for label, encoder in encoders.items()}


def shared_feature(encoders: Mapping[str, HasProjection]) -> Feature:
    """The embedding that all encoders have: projected, unless one has no projection."""
    return "projected" if all(encoder.has_projection for encoder in encoders.values()) else "pooled"


def numbered(names: Sequence[str], numbers: Iterable[int]) -> dict[str, int]:
    """Numbers as units, whose keys also hold what stands behind a number."""
    return {f"{number} {names[number]}": number for number in numbers}


def numbered_clusters(names: Sequence[str], kind: str = "") -> dict[str, str]:
    """Of units that are noted by their number."""
    return {unit_name(number, kind): name for number, name in enumerate(names)}


def unit_name(unit: str | int, kind: str = "") -> str:
    """A text as it is, a number with zeros before it."""
    return kind + (unit if isinstance(unit, str) else f"{unit:07d}")


def stage(
    kind: str,
    labels: Iterable[str],
    units: Mapping[K, U],
    work: Callable[[RunStore, str, list[U]], Iterable[Measured]],
    size: int = 8,
) -> Stage:
    """A stage whose units are all pairs of a label and one of `units`, label by label; `work` is given those of one label."""
    pairs = {(label, key): (label, unit) for label in labels for key, unit in units.items()}
    return grouped(kind, pairs, work, size)


def grouped(
    kind: str,
    units: Mapping[P, tuple[L, U]],
    work: Callable[[RunStore, L, list[U]], Iterable[Measured]],
    size: int = 8,
    record: type[Record] = Record,
) -> Stage:
    """A stage of (group, unit) pairs; `work` is given those of one group. Ids follow from kind and key."""
    pairs = {content_id(unit=kind, key=key): pair for key, pair in units.items()}

    def work_by_group(store: RunStore, chosen: Sequence[tuple[L, U]]) -> list[Measured]:
        found: dict[int, Measured] = {}
        for group in dict.fromkeys(group for group, _ in chosen):
            mine = [i for i, (other, _) in enumerate(chosen) if other == group]
            found.update(zip(mine, work(store, group, [chosen[i][1] for i in mine]), strict=True))
        return [found[i] for i in range(len(chosen))]

    return Stage(kind, pairs, work_by_group, size, record)


def single(
    kind: str,
    units: Mapping[K, U],
    work: Callable[[RunStore, Sequence[U]], Iterable[Measured]],
    size: int = 8,
    record: type[Record] = Record,
) -> Stage:
    """A stage of units that belong to no label; ids follow from kind and key."""
    named = {content_id(unit=kind, key=key): unit for key, unit in units.items()}
    return Stage(kind, named, work, size, record)


class Noted(dict[Setting, dict[str, float]]):
    """Values by setting and unit, as `Experiment.values` returns them."""

    def __init__(self) -> None:
        super().__init__()
        self._searched = set[Setting]()

    def note(self, setting: Setting, unit: str | int, value: float, exact: bool = False) -> None:
        """Add the value of a unit, which is named by a text or a number; `exact`: no allowed edit makes it worse."""
        self.setdefault(setting, {})[unit_name(unit)] = float(value)
        if not exact:
            self._searched.add(setting)

    def with_exact(self) -> Noted:
        """The same, with settings of which every value is exact marked as such."""
        found = Noted()
        for setting, values in self.items():
            found[replace(setting, exact=setting not in self._searched)] = values
        return found


def attacked(result: AttackResult, source: str, k: int, attack: str, constraint: str) -> AttackedText:
    """A result as it is recorded."""
    return attacked_text(result, source, k, attack, constraint)


def attack_counts(found: Iterable[AttackedText]) -> dict[str, int]:
    """How many attacks there were, how many left the text as it was, and how many results the context length cut."""
    rows = list(found)
    return {
        "attacked": len(rows),
        "unchanged": sum(row.perturbed == row.prompt for row in rows),
        "truncated": sum(row.truncated for row in rows),
    }
