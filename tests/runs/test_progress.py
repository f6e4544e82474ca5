"""Time left: only where a pace was measured, in this part of the run or in one before."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from leaf_diffusion.runs import RunSpec, RunStore
from leaf_diffusion.runs.progress import read_progress, status
from leaf_diffusion.runs.records import Record

SPEC = RunSpec({"attack": "charmer"})
UNITS = {"units": 10, "marks": 4}
START = datetime(2026, 1, 1, tzinfo=UTC)


def began(folder: Path, seconds: float) -> None:
    """The stage at work began so long before START."""
    path = folder / "progress.json"
    started = (START - timedelta(seconds=seconds)).isoformat()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"started": started}))


def work(store: RunStore, kind: str, ids: range) -> None:
    """Records, the last of them at START."""
    for i in ids:
        store.append(kind, Record(id=f"{kind}{i}"))
    store.flush()
    os.utime(store.folder / "records" / f"{kind}.jsonl", (START.timestamp(),) * 2)


def left(folder: Path) -> dict[str, float | None]:
    found = status(folder).left
    assert found is not None
    seconds = {kind: None if each is None else each.total_seconds() for kind, each in found.stages.items()}
    return seconds | {"in all": None if found.total is None else found.total.total_seconds()}


def test_paces_of_former_parts_count_until_a_newer_one_is_measured(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, SPEC) as store:
        assert store.time_left() is None
        store.begin("units", UNITS)
        assert left(tmp_path) == {"units": None, "marks": None, "in all": None}
        assert str(store.time_left()) == "time left in all: unknown until units and marks are measured"
        began(tmp_path, 20)
        work(store, "units", range(4))
        assert left(tmp_path) == {"units": 30, "marks": None, "in all": None}
    with RunStore.open(tmp_path, SPEC) as store:  # killed and continued: five seconds a unit are known from before
        store.begin("units", UNITS)
        assert left(tmp_path) == {"units": 30, "marks": None, "in all": None}
        began(tmp_path, 4)
        work(store, "units", range(4, 8))
        assert left(tmp_path) == {"units": 2, "marks": None, "in all": None}  # it has become faster
    with RunStore.open(tmp_path, SPEC) as store:
        store.begin("units", UNITS)
        work(store, "units", range(8, 10))  # at a time before the stage began: no pace
        store.begin("marks", UNITS)
        assert left(tmp_path) == {"units": 0, "marks": None, "in all": None}
        assert str(store.time_left()) == "time left in all: unknown until marks are measured"
        began(tmp_path, 3)
        work(store, "marks", range(1))
        assert left(tmp_path) == {"units": 0, "marks": 9, "in all": 9}
    with RunStore.open(tmp_path, SPEC) as store:
        store.begin("marks", UNITS)
        assert str(store.time_left()) == "about 0:00:09 left in all, by the paces measured so far"
        more = UNITS | {"units": 12}  # a stage that is to come is told by the pace of a former part
        store.begin("marks", more)
        assert left(tmp_path) == {"units": 2, "marks": 9, "in all": 11}


def test_all_processes_of_a_run_are_counted(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, SPEC, shared=True) as one, RunStore.open(tmp_path, SPEC, shared=True) as two:
        one.begin("units", UNITS)
        began(tmp_path, 8)
        one.append("units", Record(id="a"))
        two.append("units", Record(id="b"))
        os.utime(tmp_path / "records" / "units.jsonl", (START.timestamp() - 3,) * 2)
        os.utime(tmp_path / "records" / "units.1.jsonl", (START.timestamp(),) * 2)
        assert left(tmp_path)["units"] == 8 * 4
        two.begin("units", UNITS)
        assert read_progress(tmp_path) != two._progress  # the first one writes it down
        found = two.time_left()
        assert found is not None and found.stages["units"] is not None


RIGHT = {"kind": "units", "started": START.isoformat(), "done": 1, "units": {"units": 2}, "paces": {"units": 0.5}}
WRONG: list[object] = [
    [], None, {}, {"kind": 1}, {"started": "soon"}, {"started": "2026-01-01"}, {"done": -1}, {"done": "1"}, {"units": []},
    {"units": {"a": "x"}}, {"units": {"a": -1}}, {"paces": 3}, {"paces": {"a": None}}, {"paces": {"a": -1}},
    {"paces": {"a": 10**400}}, {"started": "9" * 5000},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong)[:30])
def test_a_damaged_note_is_named_and_written_again(wrong: object, tmp_path: Path) -> None:
    with RunStore.open(tmp_path, SPEC) as store:
        store.begin("units", UNITS)
    path = tmp_path / "progress.json"
    path.write_text(json.dumps(RIGHT))
    assert left(tmp_path) == {"units": 1, "in all": 1}
    path.write_text(json.dumps({k: v for k, v in RIGHT.items() if k != "paces"}))  # of an older version
    assert left(tmp_path) == {"units": None, "in all": None}
    path.write_text(json.dumps(RIGHT | wrong if wrong and isinstance(wrong, dict) else wrong))
    with pytest.raises(ValueError, match=r"progress\.json is damaged"):
        status(tmp_path)
    with RunStore.open(tmp_path, SPEC) as store:
        store.begin("units", UNITS)
        assert left(tmp_path) == {"units": None, "marks": None, "in all": None}
