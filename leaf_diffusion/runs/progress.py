"""How far a run is, who works on it, and how long it will take: the pace of each stage is noted in progress.json, so that
it outlives the process."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import Field

from leaf_diffusion.runs.claims import record_files
from leaf_diffusion.runs.files import open_plain, read_plain
from leaf_diffusion.runs.read import load_run
from leaf_diffusion.runs.records import Count, Number, Record, Typed, parse

LONGEST = 1e9
"""Seconds, thirty years: no time left is said to be longer, whatever the clock of a machine showed."""


@dataclass(frozen=True)
class TimeLeft:
    """stages: kind -> what is left of it, None where its pace was never measured."""

    stages: Mapping[str, timedelta | None]

    @property
    def total(self) -> timedelta | None:
        """Over all stages; None unless each one's pace was measured."""
        known = [left for left in self.stages.values() if left is not None]
        return sum(known, timedelta()) if len(known) == len(self.stages) else None

    def __str__(self) -> str:
        if self.total is not None:
            return f"about {span(self.total)} left in all, by the paces measured so far"
        unmeasured = [kind for kind, left in self.stages.items() if left is None]
        return f"time left in all: unknown until {' and '.join(unmeasured)} are measured"


@dataclass(frozen=True)
class Progress:
    """The stage at work: its kind, when it began, how much was done then; units: what is planned of each kind.

    paces: kind -> seconds a unit, all processes together, as measured in former stages and former parts of the run; a
    newer one replaces an older one, for the number of processes may have changed.
    """

    kind: str
    started: datetime
    done: int
    units: Mapping[str, int]
    paces: Mapping[str, float] = field(default_factory=dict)

    def measured(self, folder: Path, counts: Mapping[str, int]) -> Progress:
        """With the pace of the stage at work, from its records since it began; as it is where there are none."""
        last, new = last_record(folder, self.kind), counts.get(self.kind, 0) - self.done
        if last is None or last <= self.started or new <= 0:
            return self
        return replace(self, paces={**self.paces, self.kind: (last - self.started).total_seconds() / new})

    def left(self, folder: Path, counts: Mapping[str, int]) -> TimeLeft:
        """counts: kind -> recorded units."""
        paces = self.measured(folder, counts).paces
        stages: dict[str, timedelta | None] = {}
        for kind, planned in self.units.items():
            waiting = max(0, planned - counts.get(kind, 0))
            pace = paces.get(kind) if waiting else 0.0
            stages[kind] = None if pace is None else timedelta(seconds=min(waiting * pace, LONGEST))
        return TimeLeft(stages)

    def to_json(self) -> bytes:
        """The stages in their order."""
        found = {
            **vars(self),
            "started": self.started.isoformat(),
            "units": dict(self.units),
            "paces": dict(self.paces),
        }
        return (json.dumps(found, indent=2) + "\n").encode()


class _Noted(Typed):
    """progress.json."""

    kind: str
    started: str
    done: Count
    units: dict[str, Count]
    paces: dict[str, Number] = Field(default_factory=dict)


def begin_stage(
    folder: Path, before: Progress | None, kind: str, counts: Mapping[str, int], units: Mapping[str, int]
) -> Progress:
    """A stage begins: what was measured of the one `before` is kept."""
    paces = {} if before is None else before.measured(folder, counts).paces
    return Progress(kind, datetime.now(UTC), counts.get(kind, 0), dict(units), paces)


def read_progress(folder: Path) -> Progress | None:
    """What progress.json notes; None where no stage has begun. Raises ValueError where it is damaged."""
    path = folder / "progress.json"
    try:
        found = parse(_Noted, json.loads(read_plain(path)))
        started = datetime.fromisoformat(found.started)
        if started.tzinfo is None or not all(pace >= 0 for pace in found.paces.values()):
            raise ValueError("a time without its zone, or a pace below 0")
        return Progress(found.kind, started, found.done, found.units, found.paces)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; the next call of the run's command writes it again") from error


def last_record(folder: Path, kind: str | None = None) -> datetime | None:
    """When the last record, of a kind, was written; None where there is none."""
    found = [path.stat() for other, _, path in record_files(folder) if kind in (None, other)]
    times = [stat.st_mtime for stat in found if stat.st_size]
    return datetime.fromtimestamp(max(times), UTC) if times else None


def span(time: timedelta) -> str:
    """ "1 day, 3:20:00"."""
    return str(timedelta(seconds=round(time.total_seconds())))


@dataclass(frozen=True)
class Status:
    """units: kind -> (recorded, planned); left: None before a first stage has begun; writers: how many processes hold the
    folder; idle: since the last record, None where there is none."""

    units: dict[str, tuple[int, int]]
    left: TimeLeft | None
    writers: int
    idle: timedelta | None
    finished: bool


def status(folder: Path) -> Status:
    """Read without a lock, also while the run goes on. Raises FileNotFoundError for no run folder, ValueError for a
    damaged file."""
    run, noted, last = load_run(folder), read_progress(folder), last_record(folder)
    planned = {} if noted is None else noted.units
    counts = {kind: len(run.records(kind, Record)) for kind in planned}
    units = {kind: (counts[kind], total) for kind, total in planned.items()}
    done = bool(units) and all(each >= total for each, total in units.values())
    return Status(
        units,
        None if noted is None else noted.left(folder, counts),
        _writers(folder),
        None if last is None else datetime.now(UTC) - last,
        done and bool(run.results.rows),
    )


def _writers(folder: Path) -> int:
    """How many writers' locks are held."""
    held = 0
    for path in (folder / "records").glob(".writer-*"):
        fd = open_plain(path)  # a run that nobody may write to has a status, too
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            held += 1
        finally:
            os.close(fd)
    return held
