import os
from pathlib import Path

import pytest
import torch

from leaf_diffusion.eval import t2i_robustness
from leaf_diffusion.evaluation.strict import strict
from leaf_diffusion.runs import load_run
from leaf_diffusion.runs.records import KINDS, ImageRecord

ARGUMENTS = [
    "--encoders",
    "original",
    "leaf",
    "--k",
    "1",
    "--attack",
    "charmer:n_positions=2",
    "--steps",
    "2",
    "--strict",
]


@pytest.mark.slow
def test_what_shares_a_run_decides_no_bit(tmp_path: Path) -> None:
    for limit, batch_size in ((2, 32), (3, 2)):
        folder = str(tmp_path / str(limit))
        arguments = [*ARGUMENTS, "--limit", str(limit), "--batch-size", str(batch_size), "--output", folder]
        assert t2i_robustness.main(arguments) == 0
    few, more = (load_run(tmp_path / name) for name in ("2", "3"))
    for kind in ("attacks", "images", "scores"):
        found = {record.id: record for record in more.records(kind, KINDS[kind])}
        assert len(found) > len(few.records(kind, KINDS[kind])) > 0
        for record in few.records(kind, KINDS[kind]):
            assert record == found[record.id]
    for record in few.records("images", ImageRecord):
        assert (few.folder / record.image).read_bytes() == (more.folder / record.image).read_bytes()


def test_what_was_set_is_set_again() -> None:
    def settings() -> tuple[object, ...]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.benchmark,
            torch.get_num_threads(),
            os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        )

    before = settings()
    with strict(True):
        assert settings() == (True, False, False, 1, os.environ["CUBLAS_WORKSPACE_CONFIG"])
    assert settings() == before
    with strict(False):
        assert settings() == before
