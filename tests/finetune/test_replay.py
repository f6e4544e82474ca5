"""Attacked captions that are learnt from again: what is drawn, what a checkpoint holds, and one look-up an update."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from leaf_diffusion.encoders.clip import HFTextEncoder, token_table
from leaf_diffusion.finetune import TextFAREConfig, finetune_text_encoder
from leaf_diffusion.finetune.anchors import attack_captions, bucketed
from leaf_diffusion.finetune.replay import Pairs, Replay
from leaf_diffusion.finetune.tower import SEEN, Features, trainable_copy
from leaf_diffusion.tokens.tokenizer import clip_tokenizer

CAPTIONS = [f"a photo of a {c} {n}" for c in ("red", "blue", "green") for n in ("cat", "house", "boat", "umbrella")]
SETTINGS = {"rho": 6, "batch_size": 8, "lr": 2e-3, "warmup_steps": 2, "checkpoint_every": 2, "eval_every": 100}
SETTINGS |= {"max_steps": 6}
BOTH = {"replay": 0.5, "replay_size": 10, "spelling": True, "states_weight": 0.5, "states_captions": 6}

# all processes are broken off in the update that is named, or none
SCRIPT = """
import sys
from leaf_diffusion.encoders import load_text_encoder
from leaf_diffusion.tokens.tokenizer import clip_tokenizer
from leaf_diffusion.finetune import TextFAREConfig, finetune_text_encoder, textfare
folder, output, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
attack, calls = textfare.attack_captions, 0

def broken(*args, **kwargs):
    global calls
    calls += 1
    if calls == last:
        raise SystemExit(3)
    return attack(*args, **kwargs)

textfare.attack_captions = broken
config = TextFAREConfig(rho=3, batch_size=4, max_steps=5, warmup_steps=1, lr=2e-3, checkpoint_every=2, replay=0.5)
captions = open(folder + "/captions.txt").read().splitlines()
encoder = load_text_encoder(folder, tokenizer=clip_tokenizer(), device="cpu")
finetune_text_encoder(encoder, captions, output, config, held_out=captions[:2])
"""


class Interrupt(Exception):
    pass


def run(encoder: HFTextEncoder, folder: Path, **settings: object) -> dict[str, torch.Tensor]:
    config = TextFAREConfig(**{**SETTINGS, **settings})  # type: ignore[arg-type]
    finetune_text_encoder(encoder, CAPTIONS, folder, config, held_out=CAPTIONS[:4])
    return dict(load_file(folder / "model.safetensors"))


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def pairs(*numbers: int) -> Pairs:
    return Pairs(list(numbers), [[n, n + 1] for n in numbers], torch.tensor(numbers)[:, None].float())


def test_the_newest_pairs_are_held_and_drawn_from() -> None:
    replay = Replay(drawn=3, size=4)
    first = replay.mixed(pairs(0, 1), (0, 0))
    assert first.captions == [0, 1]  # there is nothing earlier
    second = replay.mixed(pairs(2, 3), (0, 1))
    assert second.captions[:2] == [2, 3] and sorted(second.captions[2:]) == [0, 1]
    third = replay.mixed(pairs(4, 5), (0, 2))
    assert third.captions[:2] == [4, 5] and len(set(third.captions[2:])) == 3 and set(third.captions[2:]) < {0, 1, 2, 3}
    assert replay.held is not None and replay.held.captions == [2, 3, 4, 5]
    # what belongs together stays together
    assert third.rows == [[n, n + 1] for n in third.captions]
    assert third.anchors[:, 0].tolist() == third.captions
    draws = {tuple(Replay(3, 9).mixed(pairs(0), (0, 0)).captions)}
    for seed in range(20):
        again = Replay(drawn=1, size=9)
        again.held = pairs(*range(9))
        draws.add(tuple(again.mixed(pairs(9), (seed, 0)).captions))
    assert len(draws) > 5


def test_a_share_of_a_batch_is_not_attacked_anew(
    encoder: HFTextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacked, learnt = list[list[str]](), list[list[list[int]]]()
    forward = Features.forward

    def counted(attack: Any, tower: Any, captions: list[str], *args: Any, **kwargs: Any) -> list[str]:
        attacked.append(captions)
        return attack_captions(attack, tower, captions, *args, **kwargs)

    def seen(self: Features, rows: list[list[int]], states: list[list[int]]) -> Any:
        learnt.append(rows)
        return forward(self, rows, states)

    monkeypatch.setattr("leaf_diffusion.finetune.textfare.attack_captions", counted)
    monkeypatch.setattr(Features, "forward", seen)
    run(encoder, tmp_path, replay=0.75)
    assert [len(captions) for captions in attacked] == [2] * 6
    assert [len(rows) for rows in learnt] == [2, 4, 6, 8, 8, 8]
    # an epoch of fresh captions goes by before one comes again
    assert sorted(caption for batch in attacked for caption in batch) == sorted(CAPTIONS)
    for i, rows in enumerate(learnt):
        assert all(row in [each for earlier in learnt[:i] for each in earlier[:2]] for row in rows[2:])
    assert TextFAREConfig(batch_size=8, replay=0.75, epochs=3).resolved(examples=12, processes=1)[1] == 18


def test_without_replay_nothing_changes_and_with_it_a_training_repeats(encoder: HFTextEncoder, tmp_path: Path) -> None:
    without = run(encoder, tmp_path / "without")
    assert equal(without, run(encoder, tmp_path / "0", replay=0.0, replay_size=99))
    identity = json.loads((tmp_path / "0" / "finetune.json").read_text())["identity"]
    assert not {"replay", "replay_size"} & identity.keys()  # folders from before there was any go on
    again = run(encoder, tmp_path / "1", replay=0.5)
    assert equal(again, run(encoder, tmp_path / "2", replay=0.5))
    assert not equal(again, without)
    with pytest.raises(ValueError, match=r"other settings .*replay"):
        run(encoder, tmp_path / "1", replay=0.25)


@pytest.mark.parametrize("last", [4, 6])
def test_an_interrupted_training_ends_with_the_same_weights(
    encoder: HFTextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    whole, calls = run(encoder, tmp_path / "whole", **BOTH), 0

    def broken(*args: object, **kwargs: object) -> list[str]:
        nonlocal calls
        calls += 1
        if calls == last:
            raise Interrupt
        return attack_captions(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("leaf_diffusion.finetune.textfare.attack_captions", broken)
        with pytest.raises(Interrupt):
            run(encoder, tmp_path / "cut", **BOTH)
    stored = load_file(tmp_path / "cut" / "checkpoint" / "state.safetensors")
    assert len(stored["kept.replay.captions"]) == min(10, 4 * (last // 2 * 2 - 2 * (last % 2 == 0)))
    assert equal(whole, run(encoder, tmp_path / "cut", **BOTH))


def test_a_floor_and_replay_share_a_checkpoint(
    encoder: HFTextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**BOTH, "clean_floor": 0.0, "eval_every": 2}
    whole = run(encoder, tmp_path / "whole", **settings)

    def broken(self: Replay, fresh: Pairs, seed: tuple[int, int]) -> Pairs:
        if seed[1] == 4:
            raise Interrupt
        return mixed(self, fresh, seed)

    mixed = Replay.mixed
    with monkeypatch.context() as patch:
        patch.setattr(Replay, "mixed", broken)
        with pytest.raises(Interrupt):
            run(encoder, tmp_path / "cut", **settings)
    assert equal(whole, run(encoder, tmp_path / "cut", **settings))


@pytest.mark.slow
def test_several_processes_go_on_where_they_were_broken_off(encoder: HFTextEncoder, tmp_path: Path) -> None:
    encoder.module.save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "captions.txt").write_text("\n".join(CAPTIONS))
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def start(output: str, last: int) -> int:
        command = [*launch, str(tmp_path / "script.py"), str(tmp_path / "tiny"), str(tmp_path / output), str(last)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert last or ran.returncode == 0, ran.stderr[-2000:]
        return ran.returncode

    start("whole", 0)
    assert start("cut", 4) != 0
    stored = load_file(tmp_path / "cut" / "checkpoint" / "state.safetensors")
    assert len(stored["kept.replay.rows"]) == 2 * 2 * 2  # of both processes, of two updates
    start("cut", 0)
    assert equal(*(load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut")))


@pytest.mark.parametrize("spelling", [False, True])
def test_one_look_up_gives_the_same_features_and_gradients(encoder: HFTextEncoder, spelling: bool) -> None:
    trained = HFTextEncoder(trainable_copy(encoder, spelling=spelling), clip_tokenizer())
    rows = trained.tokenize([f"{caption} {'and more ' * (i % 4)}" for i, caption in enumerate(CAPTIONS * 2)])
    asked = rows[:3]
    parameters = dict(trained.module.named_parameters())

    def gradients(features: torch.Tensor, states: torch.Tensor | None) -> dict[str, torch.Tensor]:
        assert states is not None
        found = torch.autograd.grad(features.sin().sum() + states.sin().sum(), list(parameters.values()))
        return dict(zip(parameters, found, strict=True))

    apart = bucketed(trained.features, rows), trained.features(asked, SEEN)
    made = 0

    def once(*_: object) -> None:
        nonlocal made
        made += 1

    together = Features(trained)(rows, asked)
    for mine, plain in zip(together, apart, strict=True):
        assert mine is not None and torch.equal(mine, plain)
    wanted = gradients(*apart)
    handle = token_table(trained.text_model).weight.register_hook(once)
    for name, value in gradients(*together).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5, msg=name)
    handle.remove()
    assert made == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"replay": 1.0},
        {"replay": -0.1},
        {"replay": float("nan")},
        {"replay_size": 0},
        {"replay": 0.5, "replay_size": 63},
    ],
)
def test_wrong_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="replay"):
        TextFAREConfig(**wrong)  # type: ignore[arg-type]
