"""The floor of clean accuracy: what it measures, when it stops a training, which weights it keeps."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from leaf_diffusion.encoders import load_text_encoder
from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.finetune import TextFAREConfig, finetune_text_encoder
from leaf_diffusion.finetune.anchors import attack_captions, embed
from leaf_diffusion.finetune.card import Figures
from leaf_diffusion.finetune.held_out import accuracy_clean
from leaf_diffusion.tokens.tokenizer import clip_tokenizer

CAPTIONS = [f"a photo of a {c} {n}" for c in ("red", "blue", "green") for n in ("cat", "house", "boat", "umbrella")]
TRAIN = "leaf_diffusion.finetune.textfare."


class Interrupt(Exception):
    pass


class Measured:
    """Stands in for `held_out_figures`: tells the given accuracies, remembers the embeddings that it was asked about."""

    def __init__(self, *accuracies: float) -> None:
        self.accuracies: Iterator[float] = iter(accuracies)
        self.seen: list[torch.Tensor] = []

    def __call__(self, encoder: HFTextEncoder, *args: object, **kwargs: object) -> Figures:
        self.seen.append(embed(encoder, CAPTIONS))
        figures = {f"{kind}_{name}": 0.5 for kind in ("drift", "cosine") for name in ("clean", "typos", "leaf")}
        return figures | {"accuracy_clean": next(self.accuracies)}


def run(encoder: HFTextEncoder, folder: Path, **settings: Any) -> Path:
    common = {"attack": "random-typos", "batch_size": 4, "lr": 3e-3, "warmup_steps": 1, "max_steps": 8}
    config = TextFAREConfig(**{**common, "eval_every": 2, "checkpoint_every": 1, "clean_floor": 0.9, **settings})
    return finetune_text_encoder(encoder, CAPTIONS, folder, config, held_out=CAPTIONS)


class State(TypedDict, total=False):
    """What is read here of finetune.json."""

    stopped: dict[str, float]
    counts: dict[str, int]


def state(folder: Path) -> State:
    found: State = json.loads((folder / "finetune.json").read_text())
    return found


def interrupted(encoder: HFTextEncoder, folder: Path, after: int, **settings: Any) -> None:
    calls = 0

    def broken(*args: Any, **kwargs: Any) -> list[str]:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Interrupt
        return attack_captions(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRAIN + "attack_captions", broken)
        with pytest.raises(Interrupt):
            run(encoder, folder, **settings)


def test_clean_accuracy_is_retrieval_among_distinct_captions(encoder: HFTextEncoder) -> None:
    captions = ["a red cat", "a red cat", "A red CAT", "a blue house", "a green boat"]
    targets = embed(encoder, captions)
    assert accuracy_clean(encoder, captions, targets, targets) == 1.0
    swapped = targets[[0, 1, 2, 4, 3]]
    assert accuracy_clean(encoder, captions, swapped, targets) == 0.6
    assert accuracy_clean(encoder, captions, 7 * swapped, targets, at_once=2) == 0.6
    # all of the copies are wrong with one of them
    assert accuracy_clean(encoder, captions, targets[[3, 3, 3, 3, 4]], targets) == 0.4


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 4}, {"spelling": True}])
def test_it_stops_below_the_floor_and_ends_with_the_last_weights_above(
    encoder: HFTextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int]
) -> None:
    measured = Measured(1.0, 0.95, 0.9, 0.85, 0.9)  # before, after steps 2, 4 and 6, at the end
    monkeypatch.setattr(TRAIN + "held_out_figures", measured)
    folder = run(encoder, tmp_path, **settings)
    rows = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    stop = {"step": 6, "accuracy_clean": 0.85, "clean_floor": 0.9, "kept_step": 4}
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    assert rows[-1].items() >= stop.items()
    assert "kept_step" not in rows[-2]
    assert state(folder)["stopped"] == stop
    assert state(folder)["counts"]["steps"] == 4
    card = (folder / "README.md").read_text()
    assert "stopped at step 6: accuracy_clean 0.85 is below the floor of 0.9; the weights are those of step 4," in card
    assert "accuracy_clean: 1.000 before, 0.900 after" in card
    lora = "lora_rank" in settings
    saved = load_text_encoder(
        encoder.module if lora else folder, tokenizer=clip_tokenizer(), adapter=folder if lora else None
    )
    ended = embed(saved, CAPTIONS)
    torch.testing.assert_close(ended, measured.seen[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ended, measured.seen[4], rtol=1e-4, atol=1e-5)
    assert min(float((ended - measured.seen[i]).abs().max()) for i in (0, 1, 3)) > 1e-2
    assert not (folder / "checkpoint").exists()


def test_where_no_measurement_holds_the_floor_the_start_is_kept(
    encoder: HFTextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TRAIN + "held_out_figures", Measured(1.0, 0.1, 1.0))
    folder = run(encoder, tmp_path)
    assert state(folder)["stopped"] == {"step": 2, "accuracy_clean": 0.1, "clean_floor": 0.9, "kept_step": 0}
    assert "those that training started with" in (folder / "README.md").read_text()
    ended = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, ended[key]) for key, value in encoder.module.state_dict().items())


def test_no_floor_and_one_that_holds_change_nothing(encoder: HFTextEncoder, tmp_path: Path) -> None:
    interrupted(encoder, tmp_path / "none", 5, clean_floor=None)
    with safe_open(tmp_path / "none" / "checkpoint" / "state.safetensors", framework="pt") as file:
        assert not [key for key in file.keys() if key.startswith("kept.")]  # noqa: SIM118
        assert file.metadata() | {"sha256": ""} == {"step": "5", "numbers": "{}", "sha256": ""}
    none, holds = (run(encoder, tmp_path / name, clean_floor=floor) for name, floor in (("none", None), ("holds", 0.0)))
    first, second = (load_file(folder / "model.safetensors") for folder in (none, holds))
    assert first and all(torch.equal(value, second[key]) for key, value in first.items())
    for folder in (none, holds):
        assert "stopped" not in state(folder)
        assert state(folder)["counts"]["steps"] == 8


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 4}])
@pytest.mark.parametrize("after", [1, 5])
def test_an_interrupted_training_keeps_the_same_weights(
    encoder: HFTextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], after: int
) -> None:
    told = [1.0, 0.9, 0.95, 0.5, 0.9]
    monkeypatch.setattr(TRAIN + "held_out_figures", Measured(*told))
    name = "adapter_model.safetensors" if settings else "model.safetensors"
    whole = load_file(run(encoder, tmp_path / "whole", **settings) / name)
    monkeypatch.setattr(TRAIN + "held_out_figures", Measured(*told))
    interrupted(encoder, tmp_path / "cut", after, **settings)
    monkeypatch.setattr(TRAIN + "held_out_figures", Measured(*told[1 + after // 2 :]))
    folder = run(encoder, tmp_path / "cut", **settings)
    resumed = load_file(folder / name)
    assert whole and whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert state(folder)["stopped"] == state(tmp_path / "whole")["stopped"]


def test_interrupted_behind_the_stop_it_does_not_train_on(
    encoder: HFTextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Measured(1.0, 0.95, 0.5, 0.95, 0.95)
    monkeypatch.setattr(TRAIN + "held_out_figures", measured)

    def full(*args: object) -> None:
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(TRAIN + "save_encoder", full)
        with pytest.raises(Interrupt):
            run(encoder, tmp_path, checkpoint_every=100)
    monkeypatch.setattr(TRAIN + "attack_captions", full)
    folder = run(encoder, tmp_path, checkpoint_every=100)
    assert state(folder)["stopped"] == {"step": 4, "accuracy_clean": 0.5, "clean_floor": 0.9, "kept_step": 2}
    torch.testing.assert_close(embed(load_text_encoder(folder), CAPTIONS), measured.seen[1])
    # which measurements there are decides where it ends
    with pytest.raises(ValueError, match=r"other settings .eval_every: 2 there, 3 now"):
        run(encoder, tmp_path, eval_every=3)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan")])
def test_a_floor_is_a_share(wrong: float) -> None:
    with pytest.raises(ValueError, match="clean_floor must be a share from 0 to 1"):
        TextFAREConfig(clean_floor=wrong)


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step(encoder: HFTextEncoder, tmp_path: Path) -> None:
    encoder.module.save_pretrained(tmp_path / "tiny")
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "leaf_diffusion.cli.finetune", "--device", "cpu", "--source", str(tmp_path / "tiny")]
    command += ["--captions", str(tmp_path / "captions.txt"), "--held-out", str(tmp_path / "captions.txt")]
    command += ["--output", str(tmp_path / "two"), "--attack", "random-typos", "--batch-size", "2", "--lr", "1e-3"]
    command += ["--max-steps", "6", "--warmup-steps", "6", "--eval-every", "1", "--clean-floor", "0.95"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    one = run(encoder, tmp_path / "one", lr=1e-3, max_steps=6, warmup_steps=6, eval_every=1, clean_floor=0.95)
    stops = [state(folder)["stopped"] for folder in (one, tmp_path / "two")]
    assert [stop["step"] for stop in stops] == [2, 2]
    assert [stop["kept_step"] for stop in stops] == [1, 1]
    first, second = (load_file(folder / "model.safetensors") for folder in (one, tmp_path / "two"))
    start = {key: value for key, value in encoder.module.state_dict().items() if "k_proj.bias" not in key}
    moved = sum(float((first[key] - value).square().sum()) for key, value in start.items())
    assert sum(float((first[key] - second[key]).square().sum()) for key in start) < 1e-3 * moved
