"""The text-to-image evaluation over every kind of pipeline: towers by name, attacked together, images of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from leaf_diffusion.diffusion.readings import sequence_encoder
from leaf_diffusion.encoders.base import Feature
from leaf_diffusion.encoders.features import Hidden, Readout
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.eval.t2i_robustness import main
from leaf_diffusion.runs import load_run
from leaf_diffusion.runs.records import AttackRecord, ImageRecord
from tests.pipelines.languages import drawing
from tests.pipelines.test_harden import moved, t5
from tests.pipelines.test_leaf_flux import t5_tokenizer
from tests.tiny import TOKENIZER

if TYPE_CHECKING:
    from tests.pipelines.conftest import Kind

SIZES = {"sd": "8", "xl": "8", "sd3": "16"}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red cat\na blue boat\n")
    return path


@pytest.fixture(scope="module")
def other(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Another encoder for each place, saved as transformers does."""
    found = {}
    for part in kind.towers:
        found[part] = tmp_path_factory.mktemp(f"{kind.name}-{part}") / "encoder"
        kind.new_tower(part).save_pretrained(found[part])
        load_text_encoder(kind.new_tower(part), tokenizer=TOKENIZER)  # it is a tower
        TOKENIZER.save_pretrained(found[part])
    return found


def run(kind: Kind, folder: Path, prompts: Path, encoders: list[str], output: Path, *more: str) -> int:
    size = SIZES[kind.name]
    words = ["--pipeline", str(folder), "--prompts", str(prompts), "--encoders", *encoders, "--output", str(output)]
    words += ["--steps", "2", "--attack", "leaf", "--k", "1", "--height", size, "--width", size]
    return main([*words, *more])


def test_every_kind_runs_and_each_label_draws_its_own(
    kind: Kind, folders: Callable[[Kind], Path], prompts: Path, other: dict[str, Path], tmp_path: Path
) -> None:
    whole = "all=" + ",".join(str(path) for path in other.values())
    encoders = ["original", whole]
    if len(other) == 2:  # each tower swappable alone
        encoders += [f"first={other['text_encoder']}", f"second=original,{other['text_encoder_2']}"]
    assert run(kind, folders(kind), prompts, encoders, tmp_path / "run") == 0
    found = load_run(tmp_path / "run")
    labels = [text.partition("=")[0] for text in encoders]
    clean = {r.encoder: r.image for r in found.records("images", ImageRecord)
             if r.protocol == "clean" and r.original == "a red cat"}  # fmt: skip
    assert list(clean) == labels
    assert len({(tmp_path / "run" / image).read_bytes() for image in clean.values()}) == len(labels)
    assert len(set(found.spec.settings["encoders"].values())) == len(labels)
    for row in found.records("attacks", AttackRecord):
        assert row.score > row.model_dump()["clean_score"] and row.distance == 1
    assert {row.encoder for row in found.results.rows} == set(labels)
    assert (tmp_path / "run" / "report.html").exists()


def test_the_attack_is_on_the_mean_of_the_towers(
    kind: Kind, folders: Callable[[Kind], Path], prompts: Path, tmp_path: Path
) -> None:
    assert run(kind, folders(kind), prompts, ["original"], tmp_path / "run", "--protocols", "adaptive") == 0
    parts, record = kind.parts(), load_run(tmp_path / "run").records("attacks", AttackRecord)[0]
    drifts = []
    for part in kind.towers:
        encoder = load_text_encoder(parts[part], tokenizer=parts["tokenizer"])
        feature: Feature = "projected" if kind.name == "sd3" else "pooled"
        clean, moved = (
            encoder.features(encoder.tokenize([text]), feature) for text in (record.prompt, record.perturbed)
        )
        drifts.append(
            float((moved - clean).square().sum()) / (float(clean.square().sum()) if len(kind.towers) > 1 else 1)
        )
    assert record.score == pytest.approx(sum(drifts) / len(drifts), rel=1e-3)


@pytest.mark.parametrize("feature", ["states", "readout"])
def test_states_are_those_that_the_denoiser_sees(
    feature: str, kind: Kind, folders: Callable[[Kind], Path], prompts: Path, tmp_path: Path
) -> None:
    words = ("--protocols", "adaptive", "--feature", feature, "--limit", "1", "--attack", "leaf")
    assert run(kind, folders(kind), prompts, ["original"], tmp_path / "run", *words) == 0
    spec = json.loads((tmp_path / "run" / "spec.json").read_text())["settings"]
    states = Hidden(-1 if kind.name == "sd" else -2, "all")
    assert spec["feature"] == str(states if feature == "states" else Readout(hidden=states))


@pytest.mark.parametrize(
    ("encoders", "more", "said"),
    [
        (["original", "x=original,original,original"], [], "3 sources|names no|nothing|original,original"),
        (["original", "x=world:original"], [], "does not fit the text_encoder"),
        (["original"], ["--no-t5"], "--no-t5"),
    ],
)
def test_misfits_are_told_before_any_work(
    kinds: dict[str, Kind], folders: Callable[[Kind], Path], prompts: Path, tmp_path: Path, encoders: list[str],
    more: list[str], said: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    kind = kinds["xl"]
    assert run(kind, folders(kind), prompts, encoders, tmp_path / "run", *more) == 2
    told = capsys.readouterr().err.replace("\n", "")
    assert any(one in told for one in said.split("|"))
    assert not (tmp_path / "run").exists()


def test_a_pipeline_of_another_kind_is_named(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    words = ["--pipeline", str(tmp_path / "other"), "--prompts", str(prompts), "--output", str(tmp_path / "run")]
    assert main(words) == 2
    told = "".join(capsys.readouterr()).replace("\n", "")
    assert "KandinskyPipeline" in told and "known: StableDiffusionPipeline" in told


@pytest.fixture(scope="module")
def z_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with a language model, and another language model for it."""
    folder = tmp_path_factory.mktemp("z-image")
    drawing("z-image").save_pretrained(folder / "pipeline")
    moved(drawing("z-image").text_encoder).save_pretrained(folder / "hardened")
    return folder


def evaluate(folder: Path, prompts: Path, *more: str) -> int:
    words = ["--pipeline", str(folder / "pipeline"), "--prompts", str(prompts), "--steps", "1", "--height", "16"]
    words += ["--width", "16", "--attack", "leaf", "--attack.rho", "2", "--k", "1", "--protocols", "adaptive"]
    return main([*words, "--output", str(folder / "run"), *more])


def test_a_language_model_is_exchanged_and_attacked(z_image: Path, prompts: Path) -> None:
    encoders = ("--encoders", "original", f"hard={z_image / 'hardened'}", "original+speller")
    assert evaluate(z_image, prompts, *encoders) == 0
    found = load_run(z_image / "run")
    settings = found.spec.settings
    assert settings["feature"] == "readout of 64 queries"
    assert len(set(settings["encoders"].values())) == 3
    images = {(r.encoder, r.protocol, r.original): r.image for r in found.records("images", ImageRecord)}
    clean = [(z_image / "run" / images[label, "clean", "a red cat"]).read_bytes() for label in ("original", "hard")]
    assert clean[0] != clean[1]
    encoder = sequence_encoder(drawing("z-image"), "text_encoder")
    record = next(r for r in found.records("attacks", AttackRecord) if r.source == "original")
    before, after = encoder.features(encoder.tokenize([record.prompt, record.perturbed])).detach()
    assert record.score == pytest.approx(float((after - before).square().sum() / before.square().sum()), rel=1e-3)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--feature", "pooled"], "--feature pooled is of CLIPs, and a ZImagePipeline has none"),
        (["--feature", "states"], "--feature states is of CLIPs, and a ZImagePipeline has none"),
        (["--no-t5"], "has no T5 that can be left out"),
        (["--attacked-encoders", "text_encoder_2"], "--attacked-encoders text_encoder_2"),
        (["--encoders", "x=world:leaf"], '"world:leaf" names a CLIP; give a folder or Hub id of a Qwen3Model'),
        (["--encoders", "x=./nowhere"], "nowhere does not exist; give a folder or Hub id of a Qwen3Model"),
        (["--encoders", "x=none/such"], "text_encoder: no text encoder 'none/such'"),
    ],
)
def test_what_a_language_model_has_not_is_refused(
    z_image: Path, prompts: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(z_image, prompts, *more, "--output", str(z_image / "refused")) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (z_image / "refused").exists()


def test_some_encoders_are_attacked(kinds: dict[str, Kind], prompts: Path, tmp_path: Path) -> None:
    kind = kinds["sd3"]
    parts = kind.parts() | {"text_encoder_3": t5(d_model=192), "tokenizer_3": t5_tokenizer()}
    kind.stock(**parts).save_pretrained(tmp_path / "sd3")
    moved(t5(d_model=192)).save_pretrained(tmp_path / "t5")
    encoders = ["original", f"hard=original,original,{tmp_path / 't5'}"]
    more = ("--protocols", "adaptive", "--limit", "1", "--attack.rho", "2", "--attacked-encoders", "text_encoder_3")
    assert run(kind, tmp_path / "sd3", prompts, encoders, tmp_path / "run", *more) == 0
    found = load_run(tmp_path / "run")
    assert found.spec.settings["attacked_encoders"] == ["text_encoder_3"]
    pipe = kind.stock(**parts)
    encoder, record = sequence_encoder(pipe, "text_encoder_3"), found.records("attacks", AttackRecord)[0]
    before, after = encoder.features(encoder.tokenize([record.prompt, record.perturbed])).detach()
    assert record.score == pytest.approx(float((after - before).square().sum() / before.square().sum()), rel=1e-3)
