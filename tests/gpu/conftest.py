"""Everything here needs a CUDA device: `python -m pytest tests/gpu -m gpu`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """Products of float32 in float32: TF32 keeps 10 bits of them."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _neighbour(path: str) -> ModuleType:
    """A module of another folder of tests, whose towers and tiny pipelines serve here, too."""
    file = Path(__file__).parents[1] / path
    spec = importlib.util.spec_from_file_location(f"gpu_{file.parent.name}_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def forest_tests() -> ModuleType:
    return _neighbour("scoring/test_prefix_forest.py")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """`KINDS`: the tiny pipelines; `tower`."""
    return _neighbour("pipelines/conftest.py")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda")
