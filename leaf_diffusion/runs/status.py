"""`leaf-diffusion status <run folder>`: how far a run is, who works on it, and how long it will take."""

from __future__ import annotations

import argparse
import fcntl
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from leaf_diffusion.runs.files import open_plain
from leaf_diffusion.runs.progress import TimeLeft, last_record, read_progress, span
from leaf_diffusion.runs.read import load_run
from leaf_diffusion.text.visible import isolated


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


def main(argv: list[str] | None = None) -> int:
    """Print the status of run folders; the exit status is 0 where all of them are finished, else 3."""
    parser = argparse.ArgumentParser(prog="leaf-diffusion status", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    folders = parser.parse_args(argv).runs
    found = [(folder, status(folder)) for folder in folders]
    for folder, each in found:
        print("\n".join(_lines(folder, each)))
    return 0 if all(each.finished for _, each in found) else 3


def _lines(folder: Path, found: Status) -> list[str]:
    if found.finished:
        said = "finished"
    elif found.writers:
        said = f"{found.writers} process{'es' if found.writers > 1 else ''} at work"
    else:
        said = "nobody at work; the run's command continues it"
    since = "" if found.idle is None else f", last record {span(found.idle)} ago"
    lines = [f"{isolated(str(folder))}: {said}{since}"]
    for kind, (done, total) in found.units.items():
        lines.append(f"  {kind:<9}{done:>8,} of {total:,} ({done / total if total else 1:.0%}){_left(found, kind)}")
    if found.left is not None and not found.finished:
        lines.append(f"  {found.left}")
    return lines


def _left(found: Status, kind: str) -> str:
    left = None if found.left is None else found.left.stages.get(kind)
    return f", about {span(left)} left" if left else ""
