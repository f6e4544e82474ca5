"""Whose folder it is, and what the run in it was made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from leaf_diffusion.runs.files import RunFolderError, atomic_write, read_plain
from leaf_diffusion.runs.read import read_spec
from leaf_diffusion.runs.spec import RunSpec, environment
from leaf_diffusion.text.visible import visible


def check_owner(folder: Path, spec: RunSpec) -> None:
    """RunFolderError for the folder of another run, naming what differs, and for one that holds other things."""
    path = folder / "spec.json"
    if path.exists():
        if lines := spec.differences(read_spec(path)):
            more = f"\n  ... and {len(lines) - 12} more" if len(lines) > 12 else ""
            detail = "\n  ".join(lines[:12]) + more
            raise RunFolderError(f"{folder} holds another run; choose another output folder. It differs in\n  {detail}")
        return
    foreign = sorted(p.name for p in folder.iterdir() if p.name != ".lock" and not p.name.endswith(".tmp"))
    if foreign:
        names = ", ".join(map(visible, foreign[:5])) + (", ..." if len(foreign) > 5 else "")
        raise RunFolderError(f"{folder} is not empty and no run folder (it holds {names}); choose another folder")


def record_environment(path: Path, command: str | None, done: Mapping[str, int]) -> None:
    """Write what a run is made with; of one that is continued each time is kept. done: records there, by kind."""
    now = environment(command) | {"done": dict(done)}
    if path.exists():
        with suppress(ValueError, RecursionError):  # beside the identity: damage here is no reason to stop
            first = json.loads(read_plain(path))
            json.dumps(first, ensure_ascii=False).encode()
            if isinstance(first, dict) and isinstance(earlier := first.get("reopened", []), list):
                now = first | {"reopened": [*earlier, now]}
    atomic_write(path, pretty(now))


def pretty(value: object) -> bytes:
    """JSON to be read by people, in UTF-8."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
