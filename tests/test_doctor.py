"""`leaf-diffusion doctor` says what is, and what is not as it has to be."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch

from leaf_diffusion.cli import doctor
from leaf_diffusion.cli.main import main

Said = Callable[[], tuple[int, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    def call() -> tuple[int, str]:
        status = main(["doctor"])
        return status, capsys.readouterr().out

    return call


def versions(monkeypatch: pytest.MonkeyPatch, **other: str | None) -> None:
    """Let some packages be of another version, or (None) not installed."""
    known = metadata.version

    def version(name: str) -> str:
        if name not in other:
            return known(name)
        if (told := other[name]) is None:
            raise metadata.PackageNotFoundError(name)
        return told

    monkeypatch.setattr(metadata, "version", version)


def test_an_installation_that_works_is_told_so(said: Said) -> None:
    status, text = said()
    assert status == 0
    assert text.splitlines()[-1] == "all that is needed works"
    assert f"torch             {torch.__version__}" in text
    assert "embedded world" in text


def test_every_requirement_has_its_line() -> None:
    names = {each.what for each in doctor.packages()}
    assert {"torch", "diffusers", "transformers", "scipy", "tyro"} <= names
    assert {f"extra {name}" for name in doctor.WITHOUT} <= names
    assert "pytest" not in names


def test_what_is_too_old_or_missing_is_named_with_what_is_needed(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, diffusers="0.30.0", scipy=None, peft=None)
    status, text = said()
    assert status == 1
    assert "FAIL  diffusers         0.30.0 is installed, >=0.42 needed" in text
    assert "FAIL  scipy             is not installed" in text
    assert "--    extra lora        no LoRA is trained" in text
    assert "pip install 'leaf-diffusion[lora]'" in text
    assert text.splitlines()[-1] == "cannot work as it is: diffusers, scipy"


def test_a_build_that_cannot_be_imported_is_named(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    load = doctor.importlib.import_module

    def broken(name: str, package: str | None = None) -> object:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms\ndoes not exist")
        return load(name, package)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    status, text = said()
    assert status == 1
    assert "import torchvision  RuntimeError: operator torchvision::nms does not exist" in text


def test_weights_that_are_damaged_or_missing_are_named(
    said: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LEAF_DIFFUSION_WORLD", str(tmp_path))
    status, text = said()
    assert status == 1 and "no weights in" in text
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    status, text = said()
    assert status == 1 and "model.safetensors" in text


def test_devices_and_places_are_told(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(doctor, "multiplies_int8", lambda: True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    status, text = said()
    assert status == 0
    assert "screens in int8" in text
    assert "torch is built for CUDA 12.8 and sees no device" in text
    assert "HF_HUB_OFFLINE keeps it out" in text
