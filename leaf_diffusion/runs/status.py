"""How far a run is, who works on it, and how long it will take."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from leaf_diffusion.runs.files import open_plain
from leaf_diffusion.runs.progress import TimeLeft, last_record, read_progress
from leaf_diffusion.runs.read import load_run


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
    counts = {kind: len(run.records(kind)) for kind in planned}
    units = {kind: (counts[kind], total) for kind, total in planned.items()}
    done = bool(units) and all(each >= total for each, total in units.values())
    return Status(
        units,
        None if noted is None else noted.left(folder, counts),
        _writers(folder),
        None if last is None else datetime.now(UTC) - last,
        done and bool(run.results["rows"]),
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
