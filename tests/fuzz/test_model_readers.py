"""The readers of models, their tokenizers, adapters and half-finished trainings, against spoiled files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import JsonValue
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from leaf_diffusion.cli.convert import convert
from leaf_diffusion.encoders import load_text_encoder
from leaf_diffusion.finetune.checkpoint import (
    Checkpoint,
    Numbers,
    Training,
    append_log,
    cut_log,
    read_state,
    write_state,
)
from leaf_diffusion.tokens.tokenizer import clip_tokenizer
from tests import tiny


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text tower with its tokenizer."""
    folder = tmp_path_factory.mktemp("encoder")
    tiny.tower(
        vocab_size=600, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        projection_dim=4, max_position_embeddings=8, bos_token_id=598, eos_token_id=599, pad_token_id=599,
    ).save_pretrained(folder)  # fmt: skip
    words = small_vocabulary()
    CLIPTokenizer(vocab=words, merges=[("a", "b")], model_max_length=8).save_pretrained(folder)
    return folder


def small_vocabulary() -> dict[str, int]:
    letters = list(dict.fromkeys(clip_tokenizer().backend_tokenizer.get_vocab()))
    letters = sorted(letters, key=clip_tokenizer().get_vocab().get)[:512]
    words = [*letters, "ab", *(f"x{i}" for i in range(85)), "<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}


@pytest.fixture
def encoder(encoder_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(encoder_folder, tmp_path / "encoder")
    return tmp_path / "encoder"


def load_and_encode(folder: Path) -> None:
    found = load_text_encoder(folder)
    found.features(found.tokenize(["a red cat"]), "projected")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_encoder_folders(name: str, encoder: Path, fuzz: Any) -> None:
    fuzz.bytes(encoder / name, lambda: load_and_encode(encoder), 40, encoder)
    fuzz.json(encoder / name, lambda: load_and_encode(encoder), 40, encoder)


def test_weights(encoder: Path, fuzz: Any) -> None:
    fuzz.bytes(encoder / "model.safetensors", lambda: load_and_encode(encoder), 40, encoder)


def test_adapters(encoder: Path, fuzz: Any) -> None:
    peft = pytest.importorskip("peft")
    tower = CLIPTextModelWithProjection.from_pretrained(encoder)
    adapter = encoder / "lora"
    peft.get_peft_model(tower, peft.LoraConfig(r=1, target_modules=["q_proj"])).save_pretrained(adapter)
    tokenizer = CLIPTokenizer.from_pretrained(encoder)
    tower = CLIPTextModelWithProjection.from_pretrained(encoder)

    def read() -> None:
        load_text_encoder(tower, tokenizer=tokenizer, adapter=adapter)

    fuzz.bytes(adapter / "adapter_config.json", read, 25, adapter)
    fuzz.json(adapter / "adapter_config.json", read, 25, adapter)
    fuzz.bytes(adapter / "adapter_model.safetensors", read, 25, adapter)


@pytest.mark.parametrize("name", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_open_clip_folders(name: str, encoder: Path, tmp_path: Path, fuzz: Any) -> None:
    source, output = tmp_path / "source", tmp_path / "output"
    convert([str(encoder), str(source)])

    def read() -> None:
        shutil.rmtree(output, ignore_errors=True)
        convert([str(source), str(output)])

    fuzz.bytes(source / name, read, 25, source)
    if name.endswith(".json"):
        fuzz.json(source / name, read, 25, source)


IDENTITY: dict[str, JsonValue] = {"captions": "ab12", "lr": 1e-3, "steps": 4}


@pytest.mark.parametrize("how", ["bytes", "json"])
def test_finetune_state(how: str, tmp_path: Path, fuzz: Any) -> None:
    write_state(tmp_path, Training(identity=IDENTITY, finished=False, before={"cosine_clean": 1.0}))

    def read() -> None:
        state = read_state(tmp_path, IDENTITY)
        assert state is not None
        assert isinstance(state.finished, bool) and isinstance(state.before, dict)

    getattr(fuzz, how)(tmp_path / "finetune.json", read, 60, tmp_path)


@pytest.mark.parametrize("how", ["bytes", "json"])
def test_finetune_log(how: str, tmp_path: Path, fuzz: Any) -> None:
    for step in range(3):
        append_log(tmp_path, {"step": step, "loss": 0.5})
    getattr(fuzz, how)(tmp_path / "training_log.jsonl", lambda: cut_log(tmp_path, 2), 60)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    module = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(module.parameters())
    module(torch.ones(3)).sum().backward()
    optimiser.step()
    found = Checkpoint(tmp_path, module, optimiser)
    found.save(1, Numbers(scaler={"scale": 1.0}), {})
    return found


def test_finetune_checkpoints(checkpoint: Checkpoint, fuzz: Any) -> None:
    fuzz.bytes(checkpoint.path, checkpoint.load, 200)


def test_no_bit_of_a_finetune_checkpoint_changes_unseen(checkpoint: Checkpoint) -> None:
    content = checkpoint.path.read_bytes()
    for bit in range(0, 8 * len(content), 7):  # each place of a byte in turn
        spoiled = bytearray(content)
        spoiled[bit // 8] ^= 1 << bit % 8
        checkpoint.path.write_bytes(spoiled)
        with pytest.raises(ValueError, match=r"state\.safetensors is damaged"):
            checkpoint.load()
