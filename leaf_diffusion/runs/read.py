"""Reading a run folder back, without a lock: also while the run is still going."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from leaf_diffusion.runs.claims import record_files
from leaf_diffusion.runs.files import check_folder, read_plain
from leaf_diffusion.runs.log import damaged, read_jsonl
from leaf_diffusion.runs.records import KINDS, Record, parse
from leaf_diffusion.runs.results import RunResults
from leaf_diffusion.runs.spec import RunSpec

R = TypeVar("R", bound=Record)
M = TypeVar("M", bound=RunResults)


@dataclass(frozen=True)
class Run:
    """A run folder as it stands on the disk; records are read when first asked for."""

    folder: Path
    spec: RunSpec
    environment: Mapping[str, object]

    def records(self, kind: str, model: type[R]) -> list[R]:
        """Records of a kind by all writers, first of each id; [] when there are none.

        A last line without its end is left out: it is being written, or was when its process died. Raises DamagedRecords
        for any other that does not fit, naming file, line and field.
        """
        if kind not in self._cache or self._cache[kind][0] is not model:
            first = dict[str, Record]()
            for path in (path for other, _, path in record_files(self.folder) if other == kind):
                records, whole, torn = read_jsonl(path, model)
                if torn and _ended(path, whole):
                    raise damaged(path, len(records) + 1, "its checksum does not fit, or it is no record")
                for record in records:
                    first.setdefault(record.id, record)
            self._cache[kind] = model, list(first.values())
        return [record for record in self._cache[kind][1] if isinstance(record, model)]

    @cached_property
    def _cache(self) -> dict[str, tuple[type[Record], list[Record]]]:
        return {}

    @cached_property
    def results(self) -> RunResults:
        """results.json; without rows where the run is not finished. Raises ValueError as `read_results`."""
        return self.read_results(RunResults)

    def read_results(self, model: type[M]) -> M:
        """results.json as an experiment's own model. Raises ValueError naming file and field where it does not fit."""
        found = _json(self.folder / "results.json")
        try:
            return parse(model, {"rows": [], **found})
        except ValueError as error:
            raise damaged_results(self.folder, error) from error

    def image_path(self, relative: str) -> Path:
        """An image's path. Raises ValueError when the record points outside the run folder."""
        path = (self.folder / relative).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise ValueError(f"the record names an image outside of the run folder: {relative!r}")
        return path


def load_run(folder: str | Path) -> Run:
    """Open a run folder for reading. Raises FileNotFoundError when it is none, ValueError when its spec is damaged."""
    folder = Path(folder)
    path = folder / "spec.json"
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{folder} is no run folder: it has no spec.json. Name the folder an evaluation wrote.")
    for name in ("records", "images"):
        check_folder(folder / name)
    if os.path.lexists(old := folder / "records" / "pictures.jsonl"):
        raise ValueError(f"{old}: a run of version 0.1.0, which called its images so; rename the file to images.jsonl")
    return Run(folder, read_spec(path), _json(folder / "environment.json"))


def models_of(spec: RunSpec) -> Mapping[str, type[Record]]:
    """The models of the text-to-image evaluation's records for its runs; other experiments name their own."""
    return KINDS if spec.settings.get("experiment", "t2i-robustness") == "t2i-robustness" else {}


def read_spec(path: Path) -> RunSpec:
    try:
        return RunSpec.from_dict(json.loads(read_plain(path).decode()))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _json(path: Path) -> dict[str, object]:
    try:
        found = json.loads(read_plain(path).decode())
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, got {type(found).__name__}")
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return found


def damaged_results(folder: Path, wrong: object) -> ValueError:
    """What is wrong in results.json, and what to do."""
    return ValueError(f"{folder / 'results.json'} is damaged: {wrong}; give the run's command again")


def _ended(path: Path, start: int) -> bool:
    """Whether the file's last line, which begins at `start`, has its end."""
    return read_plain(path, start).endswith(b"\n")
