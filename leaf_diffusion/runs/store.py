"""RunStore: append-only records and atomic images of one run. A killed run continues where it was."""

from __future__ import annotations

import hashlib
import io
import os
import re
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from PIL import Image

from leaf_diffusion.images import UnreadableImageError, whole_png
from leaf_diffusion.runs.claims import Claims, Tail, record_file, record_files, take_lock, take_slot
from leaf_diffusion.runs.files import (
    RunFolderError,
    atomic_write,
    check_folder,
    explained,
    probe,
    read_plain,
    sync_folder,
)
from leaf_diffusion.runs.folder import check_owner, pretty, record_environment
from leaf_diffusion.runs.images import checked_name, digests, refuse_another, seems_whole, with_digests
from leaf_diffusion.runs.log import Log, cut_torn_end
from leaf_diffusion.runs.progress import Progress, TimeLeft, begin_stage, read_progress
from leaf_diffusion.runs.read import models_of
from leaf_diffusion.runs.records import Record, as_model
from leaf_diffusion.runs.results import RunResults, write_results
from leaf_diffusion.runs.spec import RunSpec

R = TypeVar("R", bound=Record)
_KIND = re.compile(r"[a-z0-9_-]+")
PATIENCE = 60.0
"""Seconds for which another writer's line may look damaged: a network file system can show its end first."""


def image_name(unit_id: str) -> str:
    """Path of a unit's image in its run folder. Ids hold untrusted text, so only their hash touches the disk."""
    return f"images/{hashlib.sha256(unit_id.encode()).hexdigest()[:32]}.png"


class RunStore:
    """The folder of one run, held by one writer or shared by several; `RunStore.open` makes it or continues it.

    Attributes: folder, spec, resumed (True when the run stood there), torn (kind -> bytes of a torn last line that was
    cut on opening: its unit is computed again), slot (which of the writers this one is, 0 the first).
    """

    def __init__(
        self, folder: Path, spec: RunSpec, kinds: Mapping[str, type[Record]], lock: int, fsync_seconds: float
    ) -> None:
        self.folder, self.spec, self.kinds, self.fsync_seconds = folder, spec, kinds, fsync_seconds
        self.resumed, self.shared = False, False
        self.torn: dict[str, int] = {}
        self.slot = 0
        self._logs: dict[str, Log] = {}
        self._tails: dict[str, dict[int, Tail]] = {}
        self._digests: dict[str, str] | None = None
        self._claims: Claims | None = None
        self._progress: Progress | None = None
        # closes also when the owner forgot to: a store out of use must not keep its folder locked
        self._held = [lock]
        self._release = weakref.finalize(self, _release, self._held, self._logs)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        spec: RunSpec,
        *,
        kinds: Mapping[str, type[Record]] | None = None,
        command: str | None = None,
        shared: bool = False,
        fsync_seconds: float = 2.0,
    ) -> RunStore:
        """Make the folder of a run, or continue the same run in it, before any work is done.

        kinds: the model of each kind of record; every line is checked against it on opening and on `append`.
        command: what repeats the run, for environment.json; default sys.argv. shared: other processes may open the
        folder, too, if they share it as well; each writes files of its own, `claim` shares the work out and `refresh`
        reads what the others recorded.
        Raises RunFolderError for the folder of another run (naming what differs), a non-empty folder that is no run,
        one that another process writes or that cannot be written, a full disk; ValueError for a damaged folder.
        """
        folder = Path(folder)
        with explained(folder, "creating"):
            folder.mkdir(parents=True, exist_ok=True)
        with explained(folder, "reading"):
            check_owner(folder, spec)
        lock = take_lock(folder / ".lock", shared=shared)
        store = cls(folder, spec, models_of(spec) if kinds is None else kinds, lock, fsync_seconds)
        try:
            check_owner(folder, spec)
            probe(folder)
            store.resumed = (folder / "spec.json").exists()
            if not store.resumed:
                atomic_write(folder / "spec.json", pretty(spec.to_dict()))
            with explained(folder, "creating folders in"):
                for name in ("records", "images"):
                    check_folder(folder / name)
                    (folder / name).mkdir(exist_ok=True)
            store.shared = shared
            store.slot, held = take_slot(folder, alone=not shared)
            store._held.append(held)
            if shared:
                store._claims = Claims(folder)
                store._held.append(store._claims.fd)
            else:
                for kind, slot, path in record_files(folder):  # of writers that are gone, too
                    if slot and (torn := cut_torn_end(path)):
                        store.torn[kind] = store.torn.get(kind, 0) + torn
                with explained(folder, "tidying"):
                    for where in (folder, folder / "images"):
                        for left in where.glob(".*.tmp"):  # what a killed writer had not yet renamed
                            left.unlink(missing_ok=True)
            for kind, slot, _ in record_files(folder):
                if slot == store.slot:
                    store._log(kind)
            store.refresh()
            if store.slot == 0:
                done = {kind: len(store.done(kind)) for kind in sorted({*store._logs, *store._tails})}
                record_environment(folder / "environment.json", command, done)
        except BaseException:
            store._release()
            raise
        return store

    def done(self, kind: str) -> set[str]:
        """Ids already recorded: the work left is the plan minus this set."""
        return set(self._log(kind).records).union(*(tail.records for tail in self._others(kind)))

    def records(self, kind: str, model: type[R]) -> list[R]:
        """Records of a kind, one an id: this process's in the order they were written, then the others'."""
        return [as_model(model, record) for record in self._models(kind)]

    def _models(self, kind: str) -> list[Record]:
        first = dict(self._log(kind).records)
        for tail in self._others(kind):
            for unit, record in tail.records.items():
                first.setdefault(unit, record)
        return list(first.values())

    def has(self, kind: str, ids: Iterable[str]) -> bool:
        """Whether every id is recorded."""
        known = [self._log(kind).records, *(tail.records for tail in self._others(kind))]
        return all(any(unit in records for records in known) for unit in ids)

    def count(self, kind: str) -> int:
        """How many units are recorded."""
        return len(self._log(kind).records) + sum(len(tail.records) for tail in self._others(kind))

    def refresh(self) -> None:
        """Read what other processes have recorded since."""
        for kind, slot, path in record_files(self.folder):
            if slot != self.slot:
                tails = self._tails.setdefault(kind, {})
                if slot not in tails:
                    tails[slot] = Tail(path, self._model(kind), PATIENCE if self.shared else 0.0)
                if tails[slot].read():
                    self._digests = None

    def begin(self, kind: str, units: Mapping[str, int]) -> None:
        """Note for `leaf-diffusion status` and `time_left` that work on a kind begins; units: how many of each kind are
        planned."""
        before, counts = self._progress, {each: self.count(each) for each in units}
        if before is None:
            with suppress(ValueError):  # beside the identity: damage here is no reason to stop
                before = read_progress(self.folder)
        self._progress = begin_stage(self.folder, before, kind, counts, units)
        if self.slot == 0:
            atomic_write(self.folder / "progress.json", self._progress.to_json())

    def time_left(self) -> TimeLeft | None:
        """What is left of each kind by the paces measured in this run and its former parts; None before `begin`."""
        if self._progress is None:
            return None
        return self._progress.left(self.folder, {kind: self.count(kind) for kind in self._progress.units})

    def claim(self, name: str) -> bool:
        """Take a piece of work for this process, until `unclaim`; False where another process is at it."""
        return self._claims is None or self._claims.take(name)

    def unclaim(self, name: str) -> None:
        """Let a piece of work go."""
        if self._claims is not None:
            self._claims.give(name)

    def append(self, kind: str, record: Record) -> bool:
        """Add a record of the kind's model. Returns False, changing nothing, when the id is there already.

        Raises ValueError for a record that does not fit the model, for what JSON cannot hold (NaN too), and RunFolderError when
        the disk refuses; the file then still ends in a whole line, so the same call may be tried again.
        """
        log = self._log(kind)
        if not record.id:
            raise ValueError(f'a record needs an "id": {kind}, {str(record)[:120]}')
        try:
            record = as_model(log.model, record)
        except ValueError as error:
            raise ValueError(f"record {record.id!r}: {error}") from error
        record = with_digests(self.folder, record)
        new = not any(record.id in tail.records for tail in self._others(kind)) and log.append(record)
        if new:
            self._note(record)
        return new

    def save_image(self, path: str, image: Image.Image) -> str:
        """Write an image, whole or not at all, at "images/<hex digits>.png" (see `image_name`); returns that path.

        Raises RunFolderError where it was recorded before and is another now.
        """
        buffer = io.BytesIO()
        where = self.folder / checked_name(path)
        image.save(buffer, format="PNG")
        refuse_another(where, self._recorded(path), buffer.getvalue(), "drawn again")
        atomic_write(where, buffer.getvalue(), sync_name=False)  # one sync for many names: flush()
        return path

    def load_image(self, path: str) -> Image.Image:
        """An image of this run. Raises RunFolderError when it is missing, truncated or not the one that was recorded."""
        where = self.folder / checked_name(path)
        try:
            image = whole_png(where, data := read_plain(where) if seems_whole(where) else b"")
        except UnreadableImageError as error:
            raise RunFolderError(
                f"{where} is missing or damaged; run the same command again: it draws it again"
            ) from error
        refuse_another(where, self._recorded(path), data, "read")
        return image

    def _recorded(self, path: str) -> str | None:
        """The sha256 of an image that is recorded, by this process or another."""
        if self._digests is None:
            self._digests = {}
            for kind in {*self._logs, *self._tails}:
                self._note(*self._models(kind))
        return self._digests.get(path)

    def _note(self, *records: Record) -> None:
        if self._digests is not None:
            for record in records:
                self._digests |= {path: each for path, each in digests(record).items() if path not in self._digests}

    def write_results(self, results: RunResults) -> None:
        """Write results.json and results.csv; see `leaf_diffusion.runs.write_results`."""
        self.flush()
        write_results(self.folder, results)

    def flush(self) -> None:
        """Force all records and images onto the disk."""
        sync_folder(self.folder / "images")
        for log in self._logs.values():
            log.sync()

    def close(self) -> None:
        """Flush and let the folder go; closing twice is fine."""
        if self._release.alive:
            try:
                self.flush()
            finally:
                self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _log(self, kind: str) -> Log:
        if not self._release.alive:
            raise ValueError("this run store is closed")
        if kind not in self._logs:
            if not _KIND.fullmatch(kind):
                raise ValueError(f"a kind of record is named with a-z, 0-9, _ and -: {kind!r}")
            path = record_file(self.folder, kind, self.slot)
            log = self._logs[kind] = Log(path, self.fsync_seconds, self._model(kind))
            if log.torn:
                self.torn[kind] = self.torn.get(kind, 0) + log.torn
        return self._logs[kind]

    def _model(self, kind: str) -> type[Record]:
        return self.kinds.get(kind, Record)

    def _others(self, kind: str) -> list[Tail]:
        return list(self._tails.get(kind, {}).values())


def _release(held: list[int], logs: dict[str, Log]) -> None:
    for log in logs.values():
        log.close()
    logs.clear()
    for fd in reversed(held):
        os.close(fd)
