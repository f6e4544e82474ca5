"""Batches of work, planned from the specification alone, done by one process or shared out among several.

A batch is computed whole, also where a killed run had recorded a part of it: so its composition, on which the last
digits of a result depend, is that of an uninterrupted run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from leaf_diffusion.runs import RunStore
from leaf_diffusion.runs.images import damaged_images
from leaf_diffusion.runs.records import Record

T = TypeVar("T")
Advance = Callable[[int], None]
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Batch:
    """`work` computes and appends the records of `ids`; `recorded`: what is there of them, whose images are looked at."""

    ids: Sequence[str]
    work: Callable[[], None]
    recorded: Sequence[Record] = ()

    def is_open(self, store: RunStore, kind: str) -> bool:
        """Whether a record is not there, or an image missing or damaged."""
        return not store.has(kind, self.ids) or any(damaged_images(store.folder, record) for record in self.recorded)


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Slices of `size` items, the last one of what is left."""
    return (items[i : i + size] for i in range(0, len(items), size))


def run_batches(store: RunStore, kind: str, batches: Sequence[Batch], advance: Advance) -> None:
    """Do what is left of the batches, and wait for those that other processes are at; at the end every id is recorded.

    Where another process dies, its batch is free again and is done here.
    """
    shown = store.count(kind)

    def show() -> None:
        nonlocal shown
        advance(store.count(kind) - shown)
        shown = store.count(kind)

    waiting = [batch for batch in batches if batch.is_open(store, kind)]
    while waiting:
        busy = []
        for batch in waiting:
            name = f"{kind}/{batch.ids[0]}"
            if not store.claim(name):
                busy.append(batch)
                continue
            try:
                store.refresh()
                if batch.is_open(store, kind):
                    batch.work()
                    store.flush()  # the next batch may take an hour
            finally:
                store.unclaim(name)
            show()
        if busy:
            time.sleep(POLL_SECONDS)
            store.refresh()
            busy = [batch for batch in busy if batch.is_open(store, kind)]
            show()
        waiting = busy
