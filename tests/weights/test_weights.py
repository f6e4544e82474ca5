"""The door for weights from outside: read whole and finite, or refused with file and tensor; one hasher."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from leaf_diffusion.weights.files import load_weights, read_header
from leaf_diffusion.weights.fingerprints import fingerprint
from leaf_diffusion.weights.models import check_folder
from leaf_diffusion.weights.pickles import conversion


def test_what_was_written_is_read(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3), "b": torch.arange(4), "c": torch.ones(2).to(torch.float8_e4m3fn)}
    save_file(tensors, tmp_path / "x.safetensors", {"said": "so"})
    read = load_weights(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys() and all(torch.equal(read[key], value) for key, value in tensors.items())
    assert load_weights(tmp_path / "x.safetensors", ["b"]).keys() == {"b"}
    header = read_header(tmp_path / "x.safetensors")
    assert (
        header.entries["a"].shape == (2, 3) and header.entries["a"].dtype == "F32" and header.metadata["said"] == "so"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_is_no_number_is_named(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    tensors = {"fine": torch.ones(3, dtype=dtype), "broken": torch.tensor([1.0, value], dtype=dtype)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors: the tensor 'broken' holds NaN or infinity"):
        load_weights(tmp_path / "x.safetensors")
    assert load_weights(tmp_path / "x.safetensors", ["fine"])["fine"].tolist() == [1, 1, 1]


def test_pickles_and_damaged_files_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    (tmp_path / "x.safetensors").write_bytes(b"\x10" + bytes(30))
    for name, error, said in (
        ("x.pt", ValueError, "pickle"),
        ("x.safetensors", ValueError, "damaged"),
        ("y.safetensors", FileNotFoundError, "no such file"),
    ):
        with pytest.raises(error, match=said):
            load_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("named", "error", "said"),
    [
        ("../outside.safetensors", ValueError, "leads out of its folder"),
        ("/tmp/outside.safetensors", ValueError, "leads out of its folder"),
        ("..\\outside.safetensors", ValueError, "leads out of its folder"),
        ("inner/weights.safetensors", ValueError, "leads out of its folder"),
        ("pytorch_model-1.bin", ValueError, "only .safetensors are loaded"),
        ("absent.safetensors", FileNotFoundError, "which is not there"),
    ],
)
def test_an_index_stays_in_its_folder(tmp_path: Path, named: str, error: type[Exception], said: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for place in (folder / "one.safetensors", tmp_path / "outside.safetensors"):
        save_file({"a": torch.ones(1)}, place)
    index = {"weight_map": {"a": "one.safetensors", "b": named}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(error, match=said):
        check_folder(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    check_folder(folder)


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"'a.weight' is of type I8"):
        check_folder(tmp_path)
    check_folder(tmp_path, whole_numbers=True)  # a quantised model's
    save_file({"position_ids": torch.arange(2)}, tmp_path / "model.safetensors")
    check_folder(tmp_path)


def test_the_fingerprint_is_of_names_types_shapes_and_bytes() -> None:
    module = nn.Linear(2, 1)
    known = hashlib.sha256()
    for name, value in (("bias", module.bias), ("weight", module.weight)):
        known.update(f"{name} torch.float32 {tuple(value.shape)}\n".encode())
        known.update(value.detach().numpy().tobytes())
    assert fingerprint(module) == fingerprint(reversed(list(module.state_dict().items()))) == known.hexdigest()
    known.update(b"relu")
    assert fingerprint(module, "relu") == known.hexdigest()
    different = {
        fingerprint([("a", torch.zeros(4))]),
        fingerprint([("b", torch.zeros(4))]),
        fingerprint([("a", torch.zeros(2, 2))]),
        fingerprint([("a", torch.zeros(4, dtype=torch.int32))]),
        fingerprint([("a", torch.tensor([0, 0, 0, 1.0]))]),
    }
    assert len(different) == 5


WEIGHTS = {"ln.weight": torch.ones(3), "proj": torch.arange(4.0)}
TOKEN = {"*": torch.ones(2, 4)}


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (WEIGHTS, WEIGHTS),
        ({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in WEIGHTS.items()}, "optimizer": {"lr": 1}}, WEIGHTS),
        ({"epoch": 1, "state_dict": {f"model.{k}": v for k, v in WEIGHTS.items()}}, WEIGHTS),
        ({"model": dict(WEIGHTS), "epoch": 3}, WEIGHTS),
        # a part that is called "model" is no wrapper: all of a language model's names begin so
        ({f"model.{k}": v for k, v in WEIGHTS.items()}, {f"model.{k}": v for k, v in WEIGHTS.items()}),
        ({"string_to_token": {"*": 265}, "string_to_param": TOKEN, "step": 1}, TOKEN),
        ({"string_to_param": nn.ParameterDict({"*": nn.Parameter(TOKEN["*"])})}, TOKEN),
        ({"<cat>": torch.ones(4)}, {"<cat>": torch.ones(4)}),
    ],
    ids=[
        "plain",
        "open_clip training",
        "Lightning",
        "nested",
        "language model",
        "AUTOMATIC1111",
        "first tokens",
        "diffusers",
    ],
)
def test_the_command_that_converts_a_pickle_takes_its_weights(
    tmp_path: Path, content: dict[str, object], wanted: dict[str, torch.Tensor]
) -> None:
    file = tmp_path / "it's.ckpt"
    torch.save(content, file)
    with pytest.raises(ValueError, match="is a pickle") as refused:
        load_weights(file)
    command = str(refused.value).partition("Convert it: ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, capture_output=True)
    found = load_weights(file.with_suffix(".safetensors"))
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_the_command_that_converts_a_pickle_runs_no_code_of_it(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    file = tmp_path / "x.pt"
    torch.save({"a": torch.ones(1), "b": Hostile()}, file)
    command = conversion((file, tmp_path / "x.safetensors")).replace("python", sys.executable, 1)
    done = subprocess.run(command, shell=True, check=False, capture_output=True)
    assert done.returncode != 0
    assert not (tmp_path / "ran").exists() and not (tmp_path / "x.safetensors").exists()
