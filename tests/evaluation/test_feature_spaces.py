"""--distance-features: which space was used is written down and shown, and nothing is chosen silently."""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from transformers import Dinov2Config, Dinov2Model

from leaf_diffusion.eval.t2i_robustness import main
from leaf_diffusion.evaluation.t2i import feature_spaces
from leaf_diffusion.evaluation.t2i.feature_spaces import inception_file, load_space
from leaf_diffusion.evaluation.t2i.judges import load_judges
from leaf_diffusion.evaluation.t2i.options import Options, parse
from leaf_diffusion.metrics import frechet_distance
from leaf_diffusion.metrics.feature_spaces import InceptionSpace
from leaf_diffusion.reports.results import Results
from leaf_diffusion.reports.text_tables import markdown
from leaf_diffusion.runs import load_run

SMALL = ["--encoders", "original", "leaf", "--limit", "3", "--k", "1", "--attack", "random-typos", "--steps", "2"]
SMALL += ["--protocols", "adaptive", "--neutral-source", "none"]


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(feature_spaces.VARIABLE, str(tmp_path / "metrics"))
    monkeypatch.setattr(feature_spaces, "try_to_load_from_cache", lambda *_: None)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_a_run_measures_and_names_its_space(
    tmp_path: Path, dinov2: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("distribution", "judges"):  # of a few images, too
        monkeypatch.setattr(f"leaf_diffusion.evaluation.t2i.{module}.least_images", lambda metric, features: 2)
    output = tmp_path / "run"
    name = f"DINOv2 {dinov2}, clean-fid resizing"
    words = [*SMALL, "--distance-features", f"dinov2:{dinov2}", "--real-images", str(photographs)]
    assert main([*words, "--output", str(output)]) == 0
    found = json.loads((output / "results.json").read_text())
    judge = "world:judge image features"
    assert found["feature_spaces"] == {"kid": name, "cmmd": judge, "frechet": name}
    assert found["real_images"] == 5
    space = load_space(f"dinov2:{dinov2}", "cpu")[0]
    assert space is not None
    records = [json.loads(line) for line in (output / "records" / "images.jsonl").read_text().splitlines()]
    mine = [r["image"] for r in records if (r["encoder"], r["protocol"]) == ("leaf", "clean")]
    drawn, real = (
        [Image.open(path) for path in paths] for paths in ([output / m for m in mine], [*photographs.iterdir()])
    )
    expected = frechet_distance(space.encode_image(drawn), space.encode_image(real))
    row = next(r for r in found["rows"] if (r["encoder"], r["protocol"], r["metric"]) == ("leaf", "clean", "frechet"))
    assert row["mean"] == pytest.approx(float(expected), rel=1e-3)
    assert row["n"] == 3
    settings = json.loads((output / "spec.json").read_text())["settings"]
    assert settings["distance_features"]["space"] == name
    assert len(settings["distance_features"]["weights"]) == 64
    html = (output / "report.html").read_text()
    assert html.count(f"feature space “<bdi>{name}</bdi>”") == 2
    assert html.count(f"feature space “<bdi>{judge}</bdi>”") == 1
    assert "lower is better, features: DINOv2" in markdown(Results.of(load_run(output)), ["frechet"])
    with open(output / "results.csv", newline="") as opened:
        assert {line["n"] for line in csv.DictReader(opened) if line["metric"] == "frechet"} == {"3"}


@pytest.mark.slow
def test_another_space_is_another_run(tmp_path: Path, dinov2: Path, refused: Callable[..., str]) -> None:
    assert main([*SMALL, "--output", str(tmp_path / "run")]) == 0
    settings = json.loads((tmp_path / "run" / "spec.json").read_text())["settings"]
    assert "distance_features" not in settings  # as before there was a choice
    assert main([*SMALL, "--distance-features", "judge", "--output", str(tmp_path / "run")]) == 0
    assert main([*SMALL, "--distance-features", f"dinov2:{dinov2}", "--output", str(tmp_path / "run")]) == 2


@pytest.mark.slow
def test_auto_says_what_it_did_not_find(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "--distance-features", "auto", "--real-images", str(photographs)]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "KID and Frechet distance to 5 images, features: world:judge image features" in said
    assert f"no Inception (no {inception_file()}); no DINOv2 (facebook/dinov2-large is not in the Hub's cache)" in said


def test_auto_takes_inception_then_dinov2_where_they_are(dinov2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[str]] = []

    def space_of(state: dict[str, torch.Tensor], device: str) -> str:
        taken.append(sorted(state))
        return "inception"

    monkeypatch.setattr(feature_spaces, "InceptionSpace", space_of)
    monkeypatch.setattr(feature_spaces, "DINOV2", str(dinov2))
    assert load_space("auto", "cpu")[0] is None
    monkeypatch.setattr(feature_spaces, "try_to_load_from_cache", lambda *_: str(dinov2 / "model.safetensors"))
    space, missing = load_space("auto", "cpu")
    assert space is not None
    assert space.name == f"DINOv2 {dinov2}, clean-fid resizing"
    assert missing == [f"no Inception (no {inception_file()})"]
    inception_file().parent.mkdir()
    save_file({"weight": torch.zeros(1)}, inception_file())
    assert load_space("auto", "cpu") == ("inception", [])
    assert taken == [["weight"]]


def test_without_a_judge_only_the_named_space_measures(dinov2: Path, photographs: Path) -> None:
    options = Options(pipeline="elsewhere", prompts=photographs, real_images=photographs).resolved()
    assert options.distance_features == "auto"
    judges = load_judges(options)
    assert judges.spaces() == {}
    assert judges.real == []
    judges = load_judges(
        Options(pipeline="x", real_images=photographs, distance_features=f"dinov2:{dinov2}", device="cpu")
    )
    assert list(judges.spaces()) == ["kid", "frechet"]
    with pytest.raises(ValueError, match="needs --real-images FOLDER"):
        load_judges(Options(pipeline="x", distance_features=f"dinov2:{dinov2}"))


def test_what_cannot_be_used_is_refused(
    tmp_path: Path, dinov2: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(name: str) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            load_space(name, "cpu")
        return str(error.value)

    assert "--distance-features swav: not known; give auto, judge" in refused(main, ["--distance-features", "swav"])
    assert "not known" in said("judge:x")
    assert "no weights in" in refused(main, [*SMALL, "--distance-features", "inception"])
    missing = said("inception")
    assert "releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth and convert it: python -c" in missing
    assert str(inception_file()) in missing
    pickle = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(1)}, pickle)
    assert "only safetensors are loaded. Convert it: python -c" in said(f"inception:{pickle}")
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, other)
    assert "no weights of the FID's Inception v3" in said(f"inception:{other}")
    other.write_bytes(b"no tensors")
    assert "cannot be used" in said(f"inception:{other}")
    assert "cannot be loaded" in said(f"dinov2:{tmp_path / 'nowhere'}")
    text = json.loads((dinov2 / "config.json").read_text()) | {"model_type": "clip"}
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text(json.dumps(text))
    assert "it is a clip, no DINOv2" in said(f"dinov2:{tmp_path / 'clip'}")
    monkeypatch.setattr(feature_spaces, "_has_fidelity", lambda: False)
    assert "needs the package torch-fidelity: pip install" in said("inception")


def test_the_conversion_that_is_told_gives_a_file_that_is_read(tmp_path: Path) -> None:
    """The whole way for Inception: a pickle of its real shape, the command of the message, the space."""
    with (
        patch("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"),
        patch.object(FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), tmp_path / feature_spaces.INCEPTION_PICKLE)
    inception_file().parent.mkdir()
    with pytest.raises(FileNotFoundError) as told:
        load_space("inception", "cpu")
    command = shlex.split(str(told.value).partition("convert it: ")[2])
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    space, _ = load_space("inception", "cpu")
    assert isinstance(space, InceptionSpace)
    assert space.name == "Inception v3 (FID), clean-fid resizing"
    assert parse(["--distance-features", "inception"]).distance_features == "inception"
