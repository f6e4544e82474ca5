"""The frame of the experiments: batches that follow from the units, and the same --dry-run and --strict for all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from leaf_diffusion.eval import retrieval, textfare
from leaf_diffusion.evaluation.stages import Stage, recorded
from leaf_diffusion.runs import RunSpec, RunStore
from leaf_diffusion.runs.records import Record
from leaf_diffusion.runs.scheduler import run_batches

UNITS = {f"{source}{prompt}{k}": (source, prompt, k) for source in "ab" for prompt in range(3) for k in (1, 2)}
Unit = tuple[str, int, int]


class Square(Record):
    id: str = ""
    value: int


def squares(store: RunStore, units: Sequence[Unit]) -> list[Square]:
    return [Square(value=k * k) for _, _, k in units]


def stage(size: int, calls: list[Sequence[Unit]] | None = None) -> Stage[Unit]:
    def work(store: RunStore, units: Sequence[Unit]) -> list[Square]:
        if calls is not None:
            calls.append(units)
        return squares(store, units)

    return Stage("squares", UNITS, work, size, Square, together=lambda _, u: u[:2], apart=lambda _, u: u[0])


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.open(tmp_path / "run", RunSpec({"experiment": "squares"}), kinds={"squares": Square})


def test_groups_stay_together_and_what_is_apart_shares_no_batch(store: RunStore) -> None:
    batches = [list(batch.ids) for batch in stage(2).batches(store)]
    assert batches == [["a01", "a02", "a11", "a12"], ["a21", "a22"], ["b01", "b02", "b11", "b12"], ["b21", "b22"]]
    alone = [list(batch.ids) for batch in stage(2).batches(store, strict=True)]
    assert alone == [[f"{source}{prompt}{k}" for k in (1, 2)] for source in "ab" for prompt in range(3)]


def test_a_batch_is_computed_whole_and_only_where_something_is_missing(store: RunStore) -> None:
    store.append("squares", Square(id="a11", value=1))
    done, calls = stage(2).batches(store), list[Sequence[Unit]]()
    run_batches(store, "squares", done[:1], lambda _: None)
    run_batches(store, "squares", stage(2, calls).batches(store), lambda _: None)
    assert [[unit[0] for unit in units] for units in calls] == [["a"] * 2, ["b"] * 4, ["b"] * 2]
    found = recorded(store, [stage(2)])["squares"]
    assert [record.id for record in found] == list(UNITS)
    assert [record.model_dump()["value"] for record in found] == [k * k for _, _, k in UNITS.values()]


def test_what_is_not_recorded_is_named(store: RunStore) -> None:
    with pytest.raises(ValueError, match="12 of 12 squares are not recorded, first a01"):
        recorded(store, [stage(2)])


def test_every_experiment_has_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--encoders", "original", "leaf", "--k", "1", "--dry-run", "--output", str(tmp_path / "run")]
    assert textfare.main([*few, "--limit", "10", "--attacks", "random-typos"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"losses +20 +8 in \d+\.\d s", said)
    assert "encoder leaf" in said
    assert retrieval.main([*few, "--gallery", "20", "--limit", "3", "--attack", "charmer:n_positions=1"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"attacks +6 +2 in \d+\.\d s", said)
    assert "nothing was kept" in said
    assert not (tmp_path / "run").exists()


def test_every_experiment_has_a_strict_run(tmp_path: Path) -> None:
    words = ["--encoders", "original", "--k", "1", "--attacks", "random-typos", "--strict"]
    for limit in (2, 3):
        assert textfare.main([*words, "--limit", str(limit), "--output", str(tmp_path / str(limit))]) == 0
    assert json.loads((tmp_path / "2" / "spec.json").read_text())["settings"]["strict"] is True
    lines = [(tmp_path / name / "records" / "losses.jsonl").read_text().splitlines() for name in ("2", "3")]
    assert lines[0] == lines[1][:2]


def test_another_main_comparison_is_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--attacks", "random-typos", "--limit", "2", "--output", str(tmp_path / "run")]
    assert textfare.main([*words, "--encoders", "original", "leaf"]) == 0
    said = capsys.readouterr().out
    assert "Main comparison, declared before the run: Relative loss, random-typos on itself, k=1" in said
    assert said.index("Main comparison") < said.index("Relative loss, differences") < said.index("report:")
    assert "Under attack: each side is an upper bound on robustness" in " ".join(said.split())
    before = (tmp_path / "run" / "results.json").read_bytes()
    assert textfare.main([*words, "--encoders", "leaf", "original"]) == 2
    assert "main_comparison.baseline" in capsys.readouterr().err
    assert (tmp_path / "run" / "results.json").read_bytes() == before


HOLDER = """
import json, sys, time
from pathlib import Path
from leaf_diffusion.runs import RunSpec, RunStore
folder = Path(sys.argv[1])
store = RunStore.open(folder, RunSpec(json.loads((folder / "spec.json").read_text())["settings"]), shared=True)
print(store.claim("results"), flush=True)
time.sleep(4)
if sys.argv[2] == "writes":
    (folder / "report.html").write_text("the holder's")
"""


@pytest.mark.parametrize("holder", ["writes", "dies"])
def test_one_process_reports_and_another_does_where_it_dies(tmp_path: Path, holder: str) -> None:
    words = ["--encoders", "original", "--k", "1", "--attacks", "random-typos", "--limit", "2", "--share"]
    assert textfare.main([*words, "--output", str(tmp_path / "run")]) == 0
    report = tmp_path / "run" / "report.html"
    report.write_text("of the first run")
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run"), holder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "True"
        assert textfare.main([*words, "--output", str(tmp_path / "run")]) == 0
    assert (report.read_text() == "the holder's") == (holder == "writes")
    assert report.read_text() != "of the first run"
