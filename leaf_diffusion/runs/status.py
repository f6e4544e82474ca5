"""`leaf-diffusion status <run folder>`: how far a run is, who works on it, and how long its stage will take."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from leaf_diffusion.runs.read import load_run
from leaf_diffusion.runs.shared import record_files


@dataclass(frozen=True)
class Status:
    """units: kind -> (recorded, planned); stage: the kind at work; left: of that stage, None where nothing was measured;
    writers: how many processes hold the folder; idle: since the last record, None where there is none."""

    units: dict[str, tuple[int, int]]
    stage: str | None
    left: timedelta | None
    writers: int
    idle: timedelta | None
    finished: bool


def status(folder: Path) -> Status:
    """Read without a lock, also while the run goes on. Raises FileNotFoundError for no run folder, ValueError for a
    damaged file."""
    run = load_run(folder)
    path = folder / "progress.json"
    try:
        noted = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        planned = {str(kind): int(n) for kind, n in noted.get("units", {}).items()}
        started = datetime.fromisoformat(noted["started"]) if noted else None
        before = int(noted.get("done", 0))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}; the next call of the run's command writes it again") from error
    units = {kind: (len(run.records(kind)), total) for kind, total in planned.items()}
    written = [path.stat().st_mtime for _, _, path in record_files(folder) if path.stat().st_size]
    last = datetime.fromtimestamp(max(written), UTC) if written else None
    stage, left = noted.get("kind"), None
    if stage in units and started is not None and last is not None and last > started:
        done, total = units[stage]
        if done > before:
            left = (last - started) / (done - before) * (total - done)
    finished = bool(units) and all(done >= total for done, total in units.values()) and "rows" in run.results
    return Status(
        units, stage, left, _writers(folder), None if last is None else datetime.now(UTC) - last,
        finished and bool(run.results["rows"]),
    )  # fmt: skip


def _writers(folder: Path) -> int:
    """How many writers' locks are held."""
    held = 0
    for path in (folder / "records").glob(".writer-*"):
        fd = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    since = "" if found.idle is None else f", last record {_span(found.idle)} ago"
    lines = [f"{folder}: {said}{since}"]
    for kind, (done, total) in found.units.items():
        left = ""
        if found.writers and kind == found.stage and found.left is not None:
            left = f", about {_span(found.left)} left by the pace of this stage"
        lines.append(f"  {kind:<9}{done:>8,} of {total:,} ({done / total if total else 1:.0%}){left}")
    return lines


def _span(time: timedelta) -> str:
    return str(timedelta(seconds=round(time.total_seconds())))
