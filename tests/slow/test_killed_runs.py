"""SIGKILL at random moments, on one process and on two: the finished run equals an uninterrupted one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from leaf_diffusion.runs import load_run
from leaf_diffusion.runs.records import ImageRecord, Record

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("killed.py")
ARGUMENTS = ["--encoders", "original", "leaf", "--limit", "6", "--k", "1", "2", "--attack", "charmer:n_positions=3", "--steps", "3",
             "--batch-size", "5", "--prompt-seed", "3"]  # fmt: skip
KINDS = ("attacks", "images", "scores")


def run(job: str, folder: Path, *options: str, kills: int) -> tuple[int, float]:
    """(children that were killed, seconds)"""
    arguments = ["--", *ARGUMENTS] if job == "evaluate" else []
    started = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), job, str(folder), "--kills", str(kills), *options, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return int(ran.stdout.split()[-1]), time.monotonic() - started


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nobody disturbed, and its seconds without the loading of libraries."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run("evaluate", folder, kills=0)
    first = json.loads((folder / "environment.json").read_text())["started"]
    assert first
    _, again = run("evaluate", folder, kills=0)  # finished: it loads, checks and reports
    _, both = run("evaluate", tmp_path_factory.mktemp("again") / "run", kills=0)
    return folder, both - again


def records(folder: Path, kind: str) -> dict[str, Record]:
    return {record.id: record for record in load_run(folder).records(kind, Record)}


@pytest.mark.parametrize("processes", [1, 2])
def test_an_evaluation_that_is_killed_twenty_times(whole: tuple[Path, float], tmp_path: Path, processes: int) -> None:
    expected, seconds = whole
    found = tmp_path / "run"
    options = ["--processes", str(processes), "--seconds", str(seconds + 2), "--start", "2"]
    killed, _ = run("evaluate", found, *options, kills=20)
    assert killed >= 15
    for kind in KINDS:
        assert records(found, kind) == records(expected, kind)
    for path in {record.image for record in load_run(expected).records("images", ImageRecord)}:
        assert (found / path).read_bytes() == (expected / path).read_bytes()
    assert (found / "results.json").read_bytes() == (expected / "results.json").read_bytes()
    assert not list((found / "images").glob(".*.tmp")) or processes > 1


def test_other_numbers_of_processes_go_on_with_a_run(whole: tuple[Path, float], tmp_path: Path) -> None:
    expected, _ = whole
    found = tmp_path / "run"
    for processes, there in ((1, 8), (2, 70), (1, 130)):
        options = ["--processes", str(processes), "--records", str(there), "--no-end"]
        killed, _ = run("evaluate", found, *options, kills=1)
        assert killed == processes
        assert there <= sum(len(records(found, kind)) for kind in KINDS) < 250
    run("evaluate", found, "--processes", "2", kills=0)
    for kind in KINDS:
        assert records(found, kind) == records(expected, kind)


def test_a_finetuning_that_is_killed_twenty_times(tmp_path: Path) -> None:
    run("finetune", tmp_path / "whole", kills=0)
    _, both = run("finetune", tmp_path / "timed", kills=0)
    _, again = run("finetune", tmp_path / "timed", kills=0)
    options = ["--seconds", str(both - again + 1), "--start", "1"]
    killed, _ = run("finetune", tmp_path / "cut", *options, kills=20)
    assert killed >= 10
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert expected and expected.keys() == found.keys()
    assert all((expected[key] == found[key]).all() for key in expected)
