"""Reading a run folder back, without a lock: also while the run is still going."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from leaf_diffusion.runs.export import COLUMNS
from leaf_diffusion.runs.shared import record_files
from leaf_diffusion.runs.spec import RunSpec


def read_jsonl(path: Path) -> tuple[list[dict[str, Any]], int, int]:
    """Records of a JSONL file, the byte length of its whole lines, and the bytes of a torn last line (0: none).

    A last line without its newline, or one that does not parse, was cut by a crash. Damage further up is no crash:
    ValueError.
    """
    if not path.exists():
        return [], 0, 0
    data = path.read_bytes()
    records: list[dict[str, Any]] = []
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        line = data[start:end] if end >= 0 else b""
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("id"), str):
                raise ValueError('a record is a JSON object with a text "id"')
            if b"\\ud" in line.lower():  # half a surrogate pair: no picture's name, no report could be made of it
                json.dumps(record, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            if end < 0 or end == len(data) - 1:
                return records, start, len(data) - start
            message = (
                f"{path}, line {len(records) + 1} is damaged ({error}); delete that line: its unit is computed again"
            )
            raise ValueError(message) from error
        records.append(record)
        start = end + 1
    return records, start, 0


@dataclass(frozen=True)
class Run:
    """A run folder as it stands on the disk; records are read when first asked for."""

    folder: Path
    spec: RunSpec
    environment: dict[str, Any]

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Records of a kind by all writers, first of each id; [] when there are none."""
        if kind not in self._cache:
            paths = [path for other, _, path in record_files(self.folder) if other == kind]
            self._cache[kind] = _first_of_each([record for path in paths for record in read_jsonl(path)[0]])
        return self._cache[kind]

    @cached_property
    def _cache(self) -> dict[str, list[dict[str, Any]]]:
        return {}

    @cached_property
    def results(self) -> dict[str, Any]:
        """results.json: its "rows" and what else the evaluation counted; no rows when the run is not finished."""
        path = self.folder / "results.json"
        found = {"rows": []} | _json(path)
        rows = found["rows"]
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= set(COLUMNS) for row in rows):
            raise ValueError(f"{path} is damaged: it holds no rows of results; give the run's command again")
        return found

    def image_path(self, relative: str) -> Path:
        """A picture's path. Raises ValueError when the record points outside the run folder."""
        path = (self.folder / relative).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise ValueError(f"the record names a picture outside of the run folder: {relative!r}")
        return path


def load_run(folder: str | Path) -> Run:
    """Open a run folder for reading. Raises FileNotFoundError when it is none, ValueError when its spec is damaged."""
    folder = Path(folder)
    path = folder / "spec.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no run folder: it has no spec.json. Name the folder an evaluation wrote.")
    return Run(folder, read_spec(path), _json(folder / "environment.json"))


def read_spec(path: Path) -> RunSpec:
    try:
        return RunSpec.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, got {type(found).__name__}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return found


def _first_of_each(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first: dict[str, dict[str, Any]] = {}
    for record in records:
        first.setdefault(record["id"], record)
    return list(first.values())
