"""Several processes on one run folder, and what `leaf-diffusion status` says of them."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from leaf_diffusion.cli.status import main
from leaf_diffusion.runs import DamagedRecords, RunFolderError, RunSpec, RunStore, load_run
from leaf_diffusion.runs.progress import status
from leaf_diffusion.runs.records import Record

SPEC = RunSpec({"attack": "charmer", "k": [1]})

HOLDER = (
    "import sys, time; from leaf_diffusion.runs import RunSpec, RunStore\n"
    f"store = RunStore.open(sys.argv[1], RunSpec({dict(SPEC.settings)!r}), shared=True)\n"
    "print(store.claim('a'), flush=True); time.sleep(60)"
)


class Unit(Record):
    n: int = 0


def test_each_writer_has_files_of_its_own_and_sees_the_others(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, SPEC, shared=True) as one, RunStore.open(tmp_path, SPEC, shared=True) as two:
        assert (one.slot, two.slot) == (0, 1)
        assert one.append("units", Unit(id="a", n=1))
        assert not two.has("units", ["a"])
        two.refresh()
        assert two.has("units", ["a"])
        assert not two.append("units", Unit(id="a", n=2))
        assert two.append("units", Unit(id="b", n=2))
        one.refresh()
        assert one.done("units") == two.done("units") == {"a", "b"}
        assert one.count("units") == two.count("units") == 2
        assert [record.id for record in two.records("units", Unit)] == ["b", "a"]
    assert sorted(path.name for path in (tmp_path / "records").glob("*.jsonl")) == ["units.1.jsonl", "units.jsonl"]
    assert load_run(tmp_path).records("units", Unit) == [Unit(id="a", n=1), Unit(id="b", n=2)]
    with RunStore.open(tmp_path, SPEC) as alone:  # one process goes on with what two have written
        assert alone.done("units") == {"a", "b"}


def test_a_writer_that_is_alone_and_those_that_share_exclude_each_other(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, SPEC), pytest.raises(RunFolderError, match="being written by process"):
        RunStore.open(tmp_path, SPEC, shared=True)
    with RunStore.open(tmp_path, SPEC, shared=True), pytest.raises(RunFolderError, match="being written by process"):
        RunStore.open(tmp_path, SPEC)


def test_a_claim_is_free_again_when_its_process_dies(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "True"
        with RunStore.open(tmp_path, SPEC, shared=True) as store:
            assert not store.claim("a")
            assert store.claim("b")
            assert status(tmp_path).writers == 2
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            assert store.claim("a")
            assert status(tmp_path).writers == 1


def test_a_line_that_another_writer_has_not_ended_is_left_and_a_damaged_one_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunStore.open(tmp_path, SPEC, shared=True) as store:
        path = tmp_path / "records" / "units.1.jsonl"
        path.write_text('{"id": "a"}\n{"id": "b"')
        store.refresh()
        assert store.done("units") == {"a"}
        path.write_text('{"id": "a"}\n{"id": "b"}\nnonsense\n{"id": "d"}\n')
        store.refresh()  # another machine's line may come in parts
        assert store.done("units") == {"a", "b"}
        path.write_text('{"id": "a"}\n{"id": "b"}\n{"id":"c"}\n{"id": "d"}\n')
        now = time.monotonic()
        with monkeypatch.context() as patch:
            patch.setattr("time.monotonic", lambda: now + 61)
            with pytest.raises(DamagedRecords, match=r"units\.1\.jsonl, line 3 is damaged"):
                store.refresh()
        path.write_text('{"id": "a"}\n{"id": "b"}\n{"id": "c"}\n{"id": "d"}\n')
        store.refresh()
        assert store.done("units") == {"a", "b", "c", "d"}
    path.write_text('{"id": "a"}\nnonsense\n{"id": "d"}\n')
    with pytest.raises(DamagedRecords, match=r"units\.1\.jsonl, line 2 is damaged"):  # nobody writes there any more
        RunStore.open(tmp_path, SPEC)
    path.write_text('{"id": "a"}\n{"id": "d')
    with RunStore.open(tmp_path, SPEC) as store:
        assert (store.done("units"), store.torn) == ({"a"}, {"units": 9})
    assert path.read_text() == '{"id": "a"}\n'


def test_status_tells_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunStore.open(tmp_path, SPEC) as store:
        assert status(tmp_path).left is None
        store.append("units", Unit(id="a"))
        store.begin("units", {"units": 4, "marks": 2})
        assert str(status(tmp_path).left).startswith("time left in all: unknown until units and marks")
        noted = json.loads((tmp_path / "progress.json").read_text())
        (tmp_path / "progress.json").write_text(json.dumps(noted | {"started": "2000-01-01T00:00:00+00:00"}))
        store.append("units", Unit(id="b"))
        found = status(tmp_path)
        assert found.units == {"units": (2, 4), "marks": (0, 2)}
        assert (found.writers, found.finished) == (1, False)
        assert found.idle is not None and found.idle < timedelta(minutes=5)
        assert found.left is not None and found.left.total is None and found.left.stages["marks"] is None
        left = found.left.stages["units"]
        assert left is not None and left > timedelta(days=2000)  # one unit in all these years
        assert main([str(tmp_path)]) == 3
    said = capsys.readouterr().out
    assert "1 process at work" in said
    assert "units           2 of 4 (50%), about" in said
    assert "time left in all: unknown until marks are measured" in said
    assert "nobody at work" in "".join(_said(tmp_path, capsys))
    with pytest.raises(FileNotFoundError, match="no run folder"):
        status(tmp_path / "records")


def _said(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    main([str(folder)])
    return capsys.readouterr().out


def test_forgotten_locks_of_status_do_not_stop_a_run(tmp_path: Path) -> None:
    RunStore.open(tmp_path, SPEC).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        status(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    RunStore.open(tmp_path, SPEC).close()
