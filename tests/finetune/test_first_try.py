"""What a beginner tries first: default options on few captions, a Stable Diffusion's own text encoder, one folder twice; and
the trackers."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import CLIPTextModel

from leaf_diffusion.attacks import LeafAttack
from leaf_diffusion.encoders import load_text_encoder
from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.finetune import TextFAREConfig, finetune_text_encoder
from leaf_diffusion.finetune.anchors import attack_captions, embed
from leaf_diffusion.finetune.config import FAREConfig, JointConfig
from leaf_diffusion.runs import RunFolderError
from leaf_diffusion.tokens.tokenizer import clip_tokenizer
from leaf_diffusion.world.paths import pipeline_path
from tests import tiny

CAPTIONS = [f"a {c} {n} on a table" for c in ("red", "blue", "white") for n in ("cup", "dish", "key", "bell", "hat")]
QUICK = TextFAREConfig(attack="random-typos", batch_size=4, max_steps=12, lr=1e-3)


@pytest.fixture(scope="module")
def bare() -> HFTextEncoder:
    """A text encoder as a Stable Diffusion holds it, without a projection."""
    return tiny.encoder(2, kind=CLIPTextModel, name="bare", **tiny.WIDER | {"initializer_factor": 3.0})


@pytest.mark.parametrize(
    ("config", "captions", "warmup", "steps"),
    [
        (TextFAREConfig(), 180, 4, 43),
        (TextFAREConfig(), 80_000, 1400, 18_750),
        (TextFAREConfig(warmup_steps=0), 180, 0, 43),
        (TextFAREConfig(max_steps=9), 180, 0, 9),
        (FAREConfig(), 180, 700, 10_000),
        (JointConfig(max_steps=500), 180, 50, 500),
    ],
)
def test_the_warm_up_scales_with_the_training(
    config: TextFAREConfig | FAREConfig, captions: int, warmup: int, steps: int
) -> None:
    resolved, found = config.resolved(captions, processes=1)
    assert (resolved.warmup_steps, found) == (warmup, steps)


def test_a_scaled_warm_up_is_told(encoder: HFTextEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finetune_text_encoder(encoder, CAPTIONS, tmp_path, QUICK, held_out=CAPTIONS[:4])
    assert "1 of 12 updates warm up (the paper's recipe: 1400)" in capsys.readouterr().out
    assert "- warmup_steps: 1\n" in (folder / "README.md").read_text()


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_an_encoder_without_a_projection_learns_its_pooled_states(
    bare: HFTextEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str], lora_rank: int | None
) -> None:
    config = TextFAREConfig(rho=6, batch_size=8, max_steps=25, lr=2e-3, warmup_steps=2, lora_rank=lora_rank)
    folder = finetune_text_encoder(bare, CAPTIONS, tmp_path, config, held_out=CAPTIONS)
    assert "bare has no text projection: its pooled states are learnt" in capsys.readouterr().out
    card = (folder / "README.md").read_text()
    assert "A `CLIPTextModel`," in card and "its pooled states are learnt" in card
    assert json.loads((folder / "finetune.json").read_text())["identity"]["feature"] == "pooled"
    if lora_rank is None:
        robust = load_text_encoder(folder)
        assert isinstance(robust.module, CLIPTextModel)
    else:
        robust = load_text_encoder(bare.module, tokenizer=clip_tokenizer(), adapter=folder)
        keys = list(load_file(folder / "adapter_model.safetensors"))
        flat = {key for key in keys if ".text_model." not in key}  # for the flat class, and for those that hold it
        assert flat and set(keys) == flat | {
            key.replace("base_model.model.", "base_model.model.text_model.") for key in flat
        }
    targets, drifts = embed(bare, CAPTIONS), []
    for one in (bare, robust):
        found = attack_captions(LeafAttack(rho=20), one, CAPTIONS, targets, k=1, constraint=None, seed=0)
        drifts.append(float((one.features(one.tokenize(found), "pooled") - targets).detach().square().sum()))
    assert drifts[1] < 0.8 * drifts[0]


@pytest.mark.parametrize("part", ["", "text_encoder"])
def test_a_stable_diffusion_or_its_text_encoder_is_a_source(tmp_path: Path, part: str) -> None:
    source = load_text_encoder(pipeline_path() / part)
    folder = finetune_text_encoder(source, CAPTIONS, tmp_path, QUICK, held_out=CAPTIONS[:4])
    pooled = [one.features(one.tokenize(CAPTIONS), "pooled").detach() for one in (source, load_text_encoder(folder))]
    assert 1e-3 < float((pooled[0] - pooled[1]).abs().max()) < 10


def test_a_folder_that_another_training_writes_is_refused(encoder: HFTextEncoder, tmp_path: Path) -> None:
    refused = []

    def second(row: dict[str, float]) -> None:
        if row["step"] == 0:
            with pytest.raises(RunFolderError, match="is being written by") as error:
                finetune_text_encoder(encoder, CAPTIONS, tmp_path, QUICK, held_out=CAPTIONS[:4])
            refused.append(error)

    finetune_text_encoder(encoder, CAPTIONS, tmp_path, QUICK, held_out=CAPTIONS[:4], on_log=second)
    assert len(refused) == 1
    assert not (tmp_path / ".lock").exists()
    rows = [json.loads(line) for line in (tmp_path / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 10, 12]


def test_a_tracker_that_is_not_installed_is_named(
    encoder: HFTextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(processes_available(), "wandb", lambda: False)
    config = TextFAREConfig(**{**QUICK.__dict__, "log_with": "wandb"})
    with pytest.raises(ModuleNotFoundError, match=r"leaf-diffusion\[track\]"):
        finetune_text_encoder(encoder, CAPTIONS, tmp_path / "new", config)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="unknown log_with 'paper'; choose one of tensorboard, wandb"):
        TextFAREConfig(log_with="paper")  # type: ignore[arg-type]


def processes_available() -> dict[str, object]:
    from leaf_diffusion.finetune import processes

    return processes.AVAILABLE


def test_tensorboard_gets_the_rows_of_the_log(encoder: HFTextEncoder, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TextFAREConfig(**{**QUICK.__dict__, "log_with": "tensorboard"})
    finetune_text_encoder(encoder, CAPTIONS, tmp_path, config, held_out=CAPTIONS[:4])
    events = EventAccumulator(str(tmp_path / "leaf_diffusion"))
    events.Reload()
    rows = [json.loads(line) for line in (tmp_path / "training_log.jsonl").read_text().splitlines()]
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert losses == {row["step"]: pytest.approx(row["loss"], rel=1e-5) for row in rows if "loss" in row}
    assert [event.step for event in events.Scalars("drift_leaf")] == [0, 12]
