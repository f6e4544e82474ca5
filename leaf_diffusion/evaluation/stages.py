"""The stages of an experiment: units of work by id, how they are batched, and what computes their records."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from leaf_diffusion.runs import RunStore
from leaf_diffusion.runs.records import Record
from leaf_diffusion.runs.scheduler import Batch, chunks

U = TypeVar("U")


@dataclass(frozen=True)
class Stage(Generic[U]):
    """One kind of record: `units` by id, and what computes the records of some of them, in their order.

    `work` is given the store, for images and for the records of earlier stages. The frame sets their ids and writes the
    records down; an `OfImage` or `OfImages` is computed again where its files are missing or damaged.
    record: the model of the records, checked when they are written and read.

    size: groups computed at a time (one with `--strict`). A group is a single unit, or all units for which `together`
    gives the same: one search that serves several k, one drawing that several units show. Units for which `apart`
    differs never share a batch: another encoder, other weights. Both are asked when the earlier stages are done.
    after: called once all units are recorded, in the first of several processes.
    """

    kind: str
    units: Mapping[str, U]
    work: Callable[[RunStore, Sequence[U]], Iterable[Record]]
    size: int = 8
    record: type[Record] = Record
    together: Callable[[RunStore, U], Hashable] | None = None
    apart: Callable[[RunStore, U], Hashable] | None = None
    after: Callable[[RunStore], None] | None = None

    def batches(self, store: RunStore, *, strict: bool = False) -> list[Batch]:
        """The work of the stage, in batches that follow from the units alone, whatever is recorded already."""
        recorded = {record.id: record for record in store.records(self.kind, self.record)}
        return [
            Batch(ids, self._work(store, ids), [recorded[unit] for unit in ids if unit in recorded])
            for ids in self._batched(store, 1 if strict else self.size)
        ]

    def _batched(self, store: RunStore, size: int) -> list[list[str]]:
        groups: dict[Hashable, dict[Hashable, list[str]]] = {}
        for name, unit in self.units.items():
            apart = self.apart(store, unit) if self.apart else None
            together = self.together(store, unit) if self.together else name
            groups.setdefault(apart, {}).setdefault(together, []).append(name)
        batched = []
        for found in groups.values():
            batched += [[name for group in some for name in group] for some in chunks(list(found.values()), size)]
        return batched

    def _work(self, store: RunStore, ids: Sequence[str]) -> Callable[[], None]:
        def work() -> None:
            for unit, record in zip(ids, self.work(store, [self.units[unit] for unit in ids]), strict=True):
                store.append(self.kind, record.model_copy(update={"id": unit}))

        return work


def recorded(store: RunStore, stages: Sequence[Stage[Any]]) -> dict[str, list[Record]]:
    """Kind -> the records of every unit, in the order of the units, whoever wrote them when.

    Raises ValueError where one is missing.
    """
    found: dict[str, list[Record]] = {}
    for stage in stages:
        by_id = {record.id: record for record in store.records(stage.kind, stage.record)}
        if missing := [unit for unit in stage.units if unit not in by_id]:
            raise ValueError(f"{len(missing)} of {len(stage.units)} {stage.kind} are not recorded, first {missing[0]}")
        found[stage.kind] = [by_id[unit] for unit in stage.units]
    return found
