"""The script that measures a GPU runs where there is none."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def said(*words: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "150"}
    return subprocess.run([sys.executable, str(GPU), *words], capture_output=True, text=True, env=given, check=False)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu_at_a_tiny_shape() -> None:
    tiny = ["--device", "cpu", "--shape", "host", "--captions", "2", "--turns", "1", "--steps", "1"]
    ran = said(*tiny, "--cases", "2", "--workers", "0", "1")
    assert ran.returncode == 0, ran.stderr
    for side in ("published", "plain", "prefix", "screened"):
        assert f" {side} " in ran.stdout
    assert re.findall(r"^│ (\d) +│ [\d.]+ +│ [\d.]+x", ran.stdout, re.MULTILINE) == ["0", "1"]
    simulated = said(*tiny, "--simulate", "450", "--cases", "--workers", "0", "1")
    assert simulated.returncode == 0, simulated.stderr
    assert "a device of 450 TFLOP/s simulated" in " ".join(simulated.stdout.split())


@pytest.mark.slow
def test_the_gpu_benchmark_says_that_there_is_no_gpu() -> None:
    ran = said()
    assert ran.returncode == 2
    assert "no CUDA device is here: --device cpu --shape host" in ran.stderr
