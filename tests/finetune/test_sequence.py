"""Finetuning of T5 and language models: the loss falls, what is saved is read by stock classes, a broken training goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

import leaf_diffusion
from leaf_diffusion import load_text_encoder
from leaf_diffusion.cli.main import main
from leaf_diffusion.diffusion.readings import sequence_encoder
from leaf_diffusion.encoders.bidirectional import BidirectionalTextEncoder
from leaf_diffusion.encoders.defences import Speller
from leaf_diffusion.encoders.features import EveryState, MeanState, Readout
from leaf_diffusion.encoders.sequence import SequenceTextEncoder
from leaf_diffusion.finetune import TextFAREConfig, finetune_text_encoder
from leaf_diffusion.finetune.anchors import attack_captions, embed, sequence_loss
from leaf_diffusion.finetune.lora import DIFFUSERS, add_lora, save_lora
from leaf_diffusion.finetune.sequence import freeze_unread, linear_names, sequence_copy, table_name
from leaf_diffusion.finetune.tower import Features
from leaf_diffusion.tokens.reading import Reading
from tests.encoders.test_load_sequence import bert
from tests.pipelines.languages import byte_level_tokenizer, klein, lumina, pixart, qwen_image, z_image

CAPTIONS = [f"a {colour} {noun}" for colour in ("red", "blue") for noun in ("cup", "key", "bell", "hat")]
HELD_OUT = CAPTIONS[:2]
SETTINGS: dict[str, Any] = {
    "rho": 3, "batch_size": 8, "lr": 3e-3, "warmup_steps": 1, "max_steps": 6, "constraint": "none", "checkpoint_every": 2,
}  # fmt: skip
SMALL = {"batch_size": 2, "max_steps": 4, "attack": "random-typos"}


class Interrupt(Exception):
    pass


def encoder_of(make: Callable[[], Any]) -> SequenceTextEncoder:
    return sequence_encoder(make(), "text_encoder", name="tiny")


def run(encoder: SequenceTextEncoder, folder: Path, **settings: Any) -> Path:
    config = TextFAREConfig(**{**SETTINGS, **settings})
    return finetune_text_encoder(encoder, CAPTIONS, folder, config, held_out=HELD_OUT)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return dict(load_file(file))


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return bool(one) and one.keys() == other.keys() and all(torch.equal(each, other[key]) for key, each in one.items())


@pytest.mark.parametrize(("make", "rank"), [(pixart, None), (z_image, None), (z_image, 4)])
def test_the_loss_under_attack_falls_and_clean_states_stay(
    make: Callable[[], Any], rank: int | None, tmp_path: Path
) -> None:
    pipe = make()
    encoder = sequence_encoder(pipe, "text_encoder")
    before = {key: value.clone() for key, value in encoder.module.state_dict().items()}
    lr = 1e-3 if make is pixart else 5e-4 if rank is None else 3e-3
    folder = run(encoder, tmp_path / "trained", lora_rank=rank, lr=lr, max_steps=7, states_weight=0.2)
    assert equal(dict(encoder.module.state_dict()), before)
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    first, last = log[0], log[-1]
    assert last["drift_leaf"] < 0.9 * first["drift_leaf"]
    assert last["drift_clean"] < 0.3 * last["drift_leaf"]
    assert last["accuracy_clean"] == 1.0
    if rank is None:
        trained = load_text_encoder(folder)
        exchanged = sequence_encoder(leaf_diffusion.harden(pipe, text_encoder=folder), "text_encoder")
        stock = type(pipe.text_encoder).from_pretrained(folder).eval()
    else:
        pipe.save_pretrained(tmp_path)
        trained = load_text_encoder(tmp_path / "text_encoder", adapter=folder)
        exchanged = sequence_encoder(leaf_diffusion.harden(pipe, text_encoder=trained), "text_encoder")
        stock = type(pipe.text_encoder).from_pretrained(tmp_path / "text_encoder")
        stock.load_adapter(str(folder))
        assert not (folder / DIFFUSERS).exists()
    assert isinstance(trained, SequenceTextEncoder)
    assert trained.reading == encoder.reading
    wanted = embed(trained, HELD_OUT)
    assert float(sequence_loss(wanted, embed(encoder, HELD_OUT))) == pytest.approx(last["drift_clean"], rel=0.2)
    for other in (exchanged, sequence_encoder(pipe, "text_encoder", module=stock)):
        torch.testing.assert_close(embed(other, HELD_OUT), wanted, rtol=1e-4, atol=1e-4)
    assert "README.md" in {path.name for path in folder.iterdir()}
    assert f"`{type(pipe.text_encoder).__name__}`" in (folder / "README.md").read_text()


def with_lora(encoder: SequenceTextEncoder) -> torch.nn.Module:
    """A copy with a LoRA that does something."""
    module = sequence_copy(encoder, share=True)
    add_lora(module, 2, seed=0, targets=linear_names(encoder), token_embedding=table_name(encoder))
    torch.manual_seed(1)
    with torch.no_grad():
        for each in module.parameters():
            if each.requires_grad:
                each.normal_(std=0.2)
    return module.eval()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft against transformers 5
@pytest.mark.parametrize("make", [pixart, z_image, lumina, qwen_image])
def test_a_lora_is_read_by_stock_classes(make: Callable[[], Any], tmp_path: Path) -> None:
    """T5EncoderModel, Qwen3Model and Gemma2Model, which are the transformer itself, and a model that sees, around it."""
    encoder = encoder_of(make)
    trained = type(encoder)(with_lora(encoder), encoder.tokenizer, reading=encoder.reading)
    kind, base = type(encoder.module), tmp_path / "base"
    names, reading = linear_names(encoder), encoder.reading
    save_lora(trained.module, 2, "base", "card", tmp_path, torch.float32, targets=names, reading=reading)
    encoder.module.save_pretrained(base)
    encoder.tokenizer.save_pretrained(base)
    adapted = kind.from_pretrained(base)
    adapted.load_adapter(str(tmp_path))
    plain = peft.PeftModel.from_pretrained(kind.from_pretrained(base), tmp_path).base_model.model
    others = [type(encoder)(each.eval(), encoder.tokenizer, reading=encoder.reading) for each in (adapted, plain)]
    rows = encoder.tokenize(CAPTIONS)
    with torch.no_grad():
        wanted, before = trained.features(rows), encoder.features(rows)
        assert (wanted - before).norm() > 0.05 * before.norm()
        for each in [*others, load_text_encoder(base, adapter=tmp_path)]:
            assert isinstance(each, SequenceTextEncoder)
            assert each.reading == encoder.reading
            assert (each.features(rows) - wanted).norm() < 1e-5 * wanted.norm()


def test_a_lora_in_half_precision_shares_the_originals_weights(tmp_path: Path) -> None:
    pipe = z_image()
    pipe.text_encoder.to(torch.bfloat16)
    encoder = sequence_encoder(pipe, "text_encoder")
    module = with_lora(encoder)
    own = {each.data_ptr() for each in encoder.module.parameters()}
    frozen = [each for each in module.parameters() if not each.requires_grad]
    assert {each.data_ptr() for each in frozen} == own
    assert {each.dtype for each in module.parameters() if each.requires_grad} == {torch.float32}
    saved = stored(run(encoder, tmp_path, lora_rank=2, gradient_checkpointing=True, **SMALL))
    assert {each.dtype for each in saved.values()} == {torch.float32}
    assert all(each.abs().max() > 0 for each in saved.values())
    assert not any("layers.2." in name for name in saved)  # Z-Image reads the state before the last block


@pytest.mark.parametrize("make", [pixart, lumina, qwen_image])
def test_checkpointed_activations_give_the_same_gradients(make: Callable[[], Any]) -> None:
    encoder = encoder_of(make)
    rows = encoder.tokenize(CAPTIONS[:3])
    found = []
    for checkpointed in (False, True):
        module = with_lora(encoder)
        if checkpointed:
            module.gradient_checkpointing_enable({"use_reentrant": False})
        trained = type(encoder)(module.train(), encoder.tokenizer, reading=encoder.reading)
        features, states = Features(trained, Readout(), EveryState())(rows, rows[:1])
        assert states is not None
        (features.sin().sum() + states.sin().sum()).backward()
        found.append({name: each.grad for name, each in module.named_parameters() if each.requires_grad})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)


def test_one_look_up_gives_the_features_of_the_tokens() -> None:
    for make in (pixart, lumina):
        encoder = encoder_of(make)
        rows = encoder.tokenize(CAPTIONS[:3])
        features, states = Features(encoder, MeanState(), EveryState())(rows, rows[:1])
        assert states is not None
        torch.testing.assert_close(features, encoder.features(rows, MeanState()))
        torch.testing.assert_close(states, encoder.features(rows[:1], EveryState()))


@pytest.mark.parametrize(
    ("make", "settings"),
    [(pixart, {"replay": 0.5, "clean_floor": 0.0, "eval_every": 3}), (z_image, {"lora_rank": 2})],
)
def test_an_interrupted_training_ends_with_the_same_weights(
    make: Callable[[], Any], settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, calls = encoder_of(make), 0
    whole = stored(run(encoder, tmp_path / "whole", **{**SMALL, **settings}))

    def broken(*args: Any, **kwargs: Any) -> list[str]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Interrupt
        return attack_captions(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("leaf_diffusion.finetune.textfare.attack_captions", broken)
        with pytest.raises(Interrupt):
            run(encoder, tmp_path / "cut", **{**SMALL, **settings})
    checkpoint = load_file(tmp_path / "cut" / "checkpoint" / "state.safetensors")
    trained = [key for key in checkpoint if key.startswith("weights.")]
    assert ("lora_rank" not in settings) or all("lora_" in key or "table" in key or "embed" in key for key in trained)
    assert equal(whole, stored(run(encoder, tmp_path / "cut", **{**SMALL, **settings})))
    with pytest.raises(ValueError, match=r"other settings .*feature"):
        run(encoder, tmp_path / "cut", **{**SMALL, **settings, "feature": "mean-state"})


def test_workers_find_the_same(tmp_path: Path) -> None:
    encoder = encoder_of(z_image)
    alone, helped = (stored(run(encoder, tmp_path / str(n), max_steps=2, batch_size=4, workers=n)) for n in (0, 2))
    assert equal(alone, helped)


def test_a_further_stage_begins_at_another_encoder(tmp_path: Path) -> None:
    encoder, begin, other = encoder_of(pixart), encoder_of(pixart), encoder_of(z_image)
    with torch.no_grad():
        begin.table.weight.mul_(1.1)
    config = TextFAREConfig(**{**SETTINGS, **SMALL, "max_steps": 1, "lr": 1e-9})
    folder = finetune_text_encoder(encoder, CAPTIONS, tmp_path / "on", config, held_out=HELD_OUT, start=begin)
    ended = load_text_encoder(folder)
    torch.testing.assert_close(ended.token_embedding(), begin.token_embedding())
    with pytest.raises(ValueError, match="is no T5EncoderModel as tiny is"):
        finetune_text_encoder(encoder, CAPTIONS, tmp_path / "x", config, held_out=HELD_OUT, start=other)


def test_nothing_is_trained_that_the_states_do_not_depend_on() -> None:
    encoder = encoder_of(klein)
    freeze_unread(encoder)
    names = {name for name, each in encoder.module.named_parameters() if each.requires_grad}
    assert any("layers.26." in name for name in names)
    assert not any("layers.27." in name or name == "model.norm.weight" for name in names)
    pooled = BidirectionalTextEncoder(bert(), byte_level_tokenizer(), reading=Reading(20))
    assert not any("pooler" in name or name == "dense" for name in linear_names(pooled))
    freeze_unread(pooled)
    assert {name for name, each in pooled.module.named_parameters() if not each.requires_grad} == {
        "pooler.dense.weight",
        "pooler.dense.bias",
    }


def test_only_the_layers_of_the_text_tower_get_a_lora() -> None:
    encoder = encoder_of(qwen_image)
    module = with_lora(encoder)
    layers = [name for name, each in module.named_modules() if hasattr(each, "lora_B")]
    assert layers and len(layers) == 7 * encoder.config.num_hidden_layers
    assert all(name.startswith("model.language_model.layers.") for name in layers)
    assert linear_names(encoder_of(pixart)) == ["k", "o", "q", "v", "wi", "wo"]


def test_what_cannot_be_trained_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    encoder = encoder_of(pixart)
    for settings, said in (
        ({"spelling": True}, "CLIP's byte-pair encoding"),
        ({"states_weight": -1.0}, "states_weight"),
    ):
        with pytest.raises(ValueError, match=said):
            run(encoder, tmp_path / "no", **settings)
    with pytest.raises(ValueError, match="leave tokens out"):
        finetune_text_encoder(encoder, CAPTIONS, tmp_path / "no", held_out=HELD_OUT, tokens=[1, 2])
    with pytest.raises(ValueError, match="speller"):
        run(sequence_encoder(pixart(), "text_encoder", defence=Speller(["a"])), tmp_path / "no")
    lora = type(encoder)(with_lora(encoder), encoder.tokenizer, reading=encoder.reading)
    with pytest.raises(ValueError, match="carries a LoRA"):
        run(lora, tmp_path / "no")
    away = encoder_of(pixart)
    away.tower.encoder.block[1].to("meta")
    with pytest.raises(ValueError, match="offloaded or spread"):
        run(away, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_the_command_trains_a_pipelines_text_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pipe = pixart()
    pipe.save_pretrained("pipe")
    Path("captions.txt").write_text("\n".join(CAPTIONS))
    words = ["finetune", "--captions", "captions.txt", "--held-out", "captions.txt", "--device", "cpu", "--rho", "2"]
    words += ["--batch-size", "2", "--max-steps", "2"]
    words += ["--attack", "random-typos", "--constraint", "none", "--output", "out"]
    assert main([*words, "--pipeline", "pipe", "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("weights are trained", "2 updates, 2 batches of 2", "learnt from in", "memory: ", "for a checkpoint"):
        assert part in said
    assert not Path("out").exists()
    assert main([*words, "--pipeline", "pipe", "--part", "text_encoder"]) == 0
    assert load_text_encoder("out").reading == sequence_encoder(pipe, "text_encoder").reading  # type: ignore[attr-defined]
    for wrong, part in (
        (["--source", "a", "--pipeline", "b"], "give --source"),
        (["--source", "a", "--part", "b"], "--part belongs"),
    ):
        assert main([*words, *wrong]) == 2
        assert part in capsys.readouterr().err
