"""T5, BERT and language models from folders, with how prompts are read for them; what cannot be read whole is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5EncoderModel,
)

from leaf_diffusion import load_text_encoder
from leaf_diffusion.diffusion.readings import sequence_encoder
from leaf_diffusion.diffusion.templates import CleanedCaption
from leaf_diffusion.encoders.bidirectional import BidirectionalTextEncoder
from leaf_diffusion.encoders.decoder import DecoderTextEncoder
from leaf_diffusion.encoders.reading_file import FILE, read_reading, write_reading
from leaf_diffusion.encoders.sequence import SequenceTextEncoder
from leaf_diffusion.tokens.reading import Reading
from tests import tiny
from tests.pipelines.languages import SIZES, byte_level_tokenizer, klein, pixart, qwen_image, sana, z_image
from tests.pipelines.test_leaf_flux import t5, t5_tokenizer

TEXTS = ["a red umbrella", "cat"]
T5: dict[str, Any] = {"d_model": 16, "d_kv": 4, "d_ff": 20, "num_layers": 1, "num_heads": 2, "vocab_size": 60}


def bert() -> BertModel:
    sizes = {
        key: SIZES[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    return BertModel(BertConfig(vocab_size=320, max_position_embeddings=40, **sizes))


MAKERS: dict[str, tuple[Callable[[], PreTrainedModel], type[SequenceTextEncoder], int]] = {
    "t5 with a decoder": (lambda: T5ForConditionalGeneration(T5Config(**T5)), BidirectionalTextEncoder, 512),
    "t5 1.1": (lambda: T5EncoderModel(T5Config(**T5, tie_word_embeddings=False)), BidirectionalTextEncoder, 512),
    "umt5": (lambda: UMT5EncoderModel(UMT5Config(**T5)), BidirectionalTextEncoder, 512),
    "bert": (bert, BidirectionalTextEncoder, 40),
    "llama": (lambda: LlamaModel(LlamaConfig(vocab_size=320, **SIZES)), DecoderTextEncoder, 512),
    "mistral, its own head": (lambda: MistralForCausalLM(MistralConfig(vocab_size=320, **SIZES)), DecoderTextEncoder, 512),
    "qwen2, another head": (
        lambda: Qwen2ForSequenceClassification(Qwen2Config(vocab_size=320, **SIZES)), DecoderTextEncoder, 512,
    ),
    "qwen2.5-vl": (lambda: qwen_image().text_encoder, DecoderTextEncoder, 512),
    "gemma2": (lambda: sana().text_encoder, DecoderTextEncoder, 512),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_folder_is_loaded(name: str, tmp_path: Path) -> None:
    make, kind, longest = MAKERS[name]
    torch.manual_seed(0)
    module = make().eval()
    tokenizer = t5_tokenizer() if "t5" in name else byte_level_tokenizer()
    module.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = load_text_encoder(tmp_path)
    assert type(encoder) is kind
    assert encoder.reading == Reading(longest)
    if "another" in name or "decoder" in name:
        assert type(encoder.module) is not type(module)
        module = module.encoder if "decoder" in name else module.model  # type: ignore[assignment]
    else:
        assert type(encoder.module) is type(module)
        module = encoder.tower_of(module)  # type: ignore[assignment]
    rows = encoder.tokenize(TEXTS)
    assert rows == tokenizer(TEXTS)["input_ids"]
    ids = torch.tensor([rows[0]])
    with torch.no_grad():
        assert torch.equal(encoder.states(ids, torch.ones_like(ids).bool()), module(input_ids=ids).last_hidden_state)


@pytest.mark.parametrize("make", [pixart, sana, z_image, qwen_image, klein])
def test_a_reading_is_stored_and_read(make: Callable[[], Any], tmp_path: Path) -> None:
    encoder = sequence_encoder(make(), "text_encoder")
    write_reading(encoder.reading, tmp_path)
    assert read_reading(tmp_path / FILE) == encoder.reading
    if make is klein:  # of 28 blocks
        return
    (tmp_path / FILE).rename(tmp_path / "moved.json")
    encoder.tower.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "moved.json").rename(tmp_path / FILE)
    assert load_text_encoder(tmp_path).tokenization == encoder.tokenization
    assert load_text_encoder(tmp_path, reading=Reading(9)).context_length == 9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clean": "os.system"}, "nothing known here that a prompt goes through; known: lowered, caption"),
        ({"clean": "caption:StableDiffusionPipeline"}, "no pipeline class 'StableDiffusionPipeline' that"),
        ({"longest": "5"}, "valid integer"),
        ({"more": 1}, "Extra inputs"),
        ({"dropped": [7, 3]}, "cannot be dropped"),
        ({"dropped": [7]}, "a first and a last place"),
    ],
)
def test_a_reading_that_is_not_understood_is_refused(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    write_reading(Reading(20), tmp_path)
    stored = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(stored | changes))
    with pytest.raises(ValueError, match=rf"reading.json cannot be used: .*{said}"):
        read_reading(tmp_path / FILE)


def test_what_has_no_name_is_not_stored(tmp_path: Path) -> None:
    for clean in (str.lower, CleanedCaption(type("Mine", (), {}))):
        with pytest.raises(ValueError, match=r"that (a prompt|cleans)"):
            write_reading(Reading(20, clean=clean), tmp_path)
    assert not (tmp_path / FILE).exists()


def test_a_part_of_a_pipeline_needs_its_reading(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "PixArtSigmaPipeline"}')
    t5().save_pretrained(tmp_path / "text_encoder")
    t5_tokenizer().save_pretrained(tmp_path / "tokenizer")
    for subfolder in (None, "text_encoder"):
        with pytest.raises(ValueError, match=r"finetune --pipeline .* --part text_encoder"):
            load_text_encoder(tmp_path, subfolder=subfolder)
    reading = Reading(30)
    for encoder in (
        load_text_encoder(tmp_path, reading=reading),
        load_text_encoder(tmp_path / "text_encoder", reading=reading),
    ):
        assert isinstance(encoder, BidirectionalTextEncoder)
        assert encoder.reading == reading
    with pytest.raises(ValueError, match="is read as CLIPs are"):
        load_text_encoder(tiny.tower(), tokenizer=tiny.TOKENIZER, reading=reading)
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer.json in text_encoder/ or tokenizer/"):
        load_text_encoder(tmp_path, reading=reading)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    t5().save_pretrained(tmp_path)
    t5_tokenizer().save_pretrained(tmp_path)
    config, weights = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config | {"d_model": 10**6}))
    with pytest.raises(ValueError, match="describes a tower of"):
        load_text_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    block = "encoder.block.0.layer.0.SelfAttention.q.weight"
    for changed, said in (
        ({**weights, "encoder.block.7.more": torch.zeros(2)}, "too many"),
        ({key: value for key, value in weights.items() if key != block}, "missing"),
        ({**weights, block: weights[block] * torch.nan}, "NaN"),
    ):
        save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=said):
            load_text_encoder(tmp_path)
