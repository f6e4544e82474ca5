"""One thread a worker (the workers already share the cores), never a network, and every annotated shape checked."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import leaf_diffusion  # noqa: F401, I001 - mends torchvision before a test imports torch's friends
import pytest
import torch

from tests import shapes

shapes.install()
torch.set_num_threads(1)


@pytest.fixture
def refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[Callable[[list[str]], int], list[str]], str]:
    """Calls a command that has to end with status 2 before its folder is made; returns what it said, in one line."""

    def call(main: Callable[[list[str]], int], words: list[str]) -> str:
        status: Any
        try:
            status = main([*words, "--output", str(tmp_path / "refused")])
        except SystemExit as ended:  # options that contradict each other, as argparse does it
            status = ended.code
        shown = capsys.readouterr()
        assert status == 2
        assert not (tmp_path / "refused").exists()
        return " ".join((shown.out + shown.err).split())

    return call
