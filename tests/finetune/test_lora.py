"""LoRA finetuning: small, exact under the attack's engine, and read by stock diffusers, transformers and PEFT."""

import json
import shutil
from pathlib import Path
from typing import Literal

import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from leaf_diffusion.encoders import load_text_encoder
from leaf_diffusion.encoders.causal import UnsupportedTowerError
from leaf_diffusion.encoders.clip import HFTextEncoder, text_model_of
from leaf_diffusion.finetune import TextFAREConfig, finetune_text_encoder
from leaf_diffusion.finetune.anchors import embed
from leaf_diffusion.finetune.lora import DIFFUSERS, add_lora, save_lora
from leaf_diffusion.finetune.tower import trainable_copy
from leaf_diffusion.scoring import Scorer
from leaf_diffusion.scoring.prefix_forest import PrefixForest
from leaf_diffusion.text import neighbours
from leaf_diffusion.world.paths import pipeline_path
from tests import tiny
from tests.tiny import TOKENIZER

CAPTIONS = [f"a photo of a {c} {n}" for c in ("red", "blue", "green") for n in ("cat", "house", "boat", "umbrella")]


@pytest.fixture(scope="module")
def encoder() -> HFTextEncoder:
    return tiny.encoder(**tiny.WIDER | {"initializer_factor": 3.0})


@pytest.fixture(scope="module")
def folder(encoder: HFTextEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TextFAREConfig(lora_rank=4, rho=6, batch_size=8, lr=5e-3, warmup_steps=2, max_steps=25, eval_every=100)
    output = tmp_path_factory.mktemp("lora")
    return finetune_text_encoder(encoder, CAPTIONS, output, config, held_out=CAPTIONS)


def test_the_folder_is_small_and_says_what_it_is(encoder: HFTextEncoder, folder: Path) -> None:
    assert not (folder / "model.safetensors").exists()
    # under the names of both kinds of classes
    assert (folder / "adapter_model.safetensors").stat().st_size < 2 * (1e5 + 4 * 4 * 49408)
    assert 'load_lora_weights("this folder")' in (folder / "README.md").read_text()
    assert "lora_rank: 4" in (folder / "README.md").read_text()
    vectors = load_file(folder / "adapter_model.safetensors")
    assert len(vectors) == 2 * 2 * (2 * 6 + 1)
    coefficients, same = (value for key, value in vectors.items() if key.endswith("token_embedding.lora_embedding_A"))
    assert torch.equal(coefficients, same)
    assert coefficients.shape == (4, 49408)
    assert coefficients[:, TOKENIZER.get_vocab()["zebra</w>"]].abs().max() == 0  # no caption and no edit holds it
    assert all(value.abs().max() > 0 for value in vectors.values())
    with pytest.raises(ValueError, match="other settings"):
        finetune_text_encoder(encoder, CAPTIONS, folder, TextFAREConfig(warmup_steps=1), held_out=CAPTIONS)


def test_it_hardens_the_original_and_leaves_it_alone(encoder: HFTextEncoder, folder: Path) -> None:
    before = embed(encoder, CAPTIONS)
    robust = load_text_encoder(encoder.module, tokenizer=TOKENIZER, adapter=folder)
    assert torch.equal(embed(encoder, CAPTIONS), before)
    typos = [caption.replace("photo", "phto").replace("house", "huose") for caption in CAPTIONS]
    drift = [float((embed(one, typos) - before).square().sum()) for one in (encoder, robust)]
    assert drift[1] < drift[0]


def test_stock_diffusers_and_a_bare_tower_read_it(encoder: HFTextEncoder, folder: Path) -> None:
    robust = load_text_encoder(encoder.module, tokenizer=TOKENIZER, adapter=folder)
    bare = CLIPTextModel(encoder.config).eval()
    flat = {key.removeprefix("text_model."): value for key, value in encoder.text_model.state_dict().items()}
    bare.load_state_dict({key: flat[key.removeprefix("text_model.")] for key in bare.state_dict()})
    wanted = robust.features(robust.tokenize(CAPTIONS), "pooled").detach()
    adapted = load_text_encoder(bare, tokenizer=TOKENIZER, adapter=folder)
    torch.testing.assert_close(adapted.features(adapted.tokenize(CAPTIONS), "pooled").detach(), wanted)
    pipe = StableDiffusionPipeline(
        vae=None, text_encoder=bare, tokenizer=TOKENIZER, unet=None, scheduler=None, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.load_lora_into_text_encoder(load_file(folder / DIFFUSERS), network_alphas=None, text_encoder=pipe.text_encoder)
    stock = HFTextEncoder(pipe.text_encoder, TOKENIZER)
    torch.testing.assert_close(stock.features(stock.tokenize(CAPTIONS), "pooled").detach(), wanted)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft against transformers 5
def test_plain_peft_reads_it_on_the_classes_of_both_kinds(encoder: HFTextEncoder, folder: Path) -> None:
    robust = load_text_encoder(encoder.module, tokenizer=TOKENIZER, adapter=folder)
    wanted = robust.features(robust.tokenize(CAPTIONS), "pooled").detach()
    for kind in (CLIPTextModel, CLIPTextModelWithProjection):
        module = kind(encoder.config).eval()
        inner = text_model_of(module)
        flat = {key.removeprefix("text_model."): value for key, value in encoder.text_model.state_dict().items()}
        inner.load_state_dict({key: flat[key.removeprefix("text_model.")] for key in inner.state_dict()})
        adapted = HFTextEncoder(peft.PeftModel.from_pretrained(module, folder).base_model.model, TOKENIZER)
        torch.testing.assert_close(adapted.features(adapted.tokenize(CAPTIONS), "pooled").detach(), wanted)


def test_the_worlds_stock_pipeline_loads_it(tmp_path: Path) -> None:
    original = load_text_encoder("world:original")
    config = TextFAREConfig(attack="random-typos", lora_rank=2, batch_size=4, lr=1e-2, warmup_steps=0, max_steps=2)
    folder = finetune_text_encoder(original, CAPTIONS, tmp_path, config, held_out=CAPTIONS[:2])
    robust = load_text_encoder("world:original", adapter=folder)
    pipe = StableDiffusionPipeline.from_pretrained(pipeline_path())
    pipe.load_lora_weights(folder)
    stock = HFTextEncoder(pipe.text_encoder, pipe.tokenizer)
    clean, adapted, wanted = (
        one.features(one.tokenize(CAPTIONS), "pooled").detach() for one in (original, stock, robust)
    )
    torch.testing.assert_close(adapted, wanted, rtol=1e-4, atol=1e-5)
    assert (adapted - clean).abs().max() > 1e-2


def test_the_engine_reads_layers_that_are_not_merged_yet(encoder: HFTextEncoder) -> None:
    tower = trainable_copy(encoder)
    add_lora(tower, 3, seed=0)
    layers = [each for each in tower.modules() if hasattr(each, "lora_B")]
    assert len(layers) == 12
    with torch.no_grad():
        for layer in layers:
            layer.lora_B["default"].weight.normal_()
    trained = HFTextEncoder(tower.eval(), TOKENIZER)

    def scores() -> list[torch.Tensor]:
        engines = ("prefix", "plain")
        return [Scorer(trained, engine=e).bind(["a cat"])([neighbours("a cat", "xyz!")])[0] for e in engines]  # type: ignore[arg-type]

    torch.testing.assert_close(*scores(), rtol=1e-4, atol=1e-4)
    layers[0].merge()
    torch.testing.assert_close(*scores(), rtol=1e-4, atol=1e-4)
    layers[1].enable_adapters(False)
    torch.testing.assert_close(*scores(), rtol=1e-4, atol=1e-4)
    layers[2].lora_variant["default"] = object()
    with pytest.raises(UnsupportedTowerError, match="DoRA"):
        PrefixForest(trained)


def test_a_lora_trains_nothing_else(encoder: HFTextEncoder) -> None:
    tower = trainable_copy(encoder)
    add_lora(tower, 3, seed=0)
    assert {name.split(".lora_")[1][:1] for name, p in tower.named_parameters() if p.requires_grad} == {"A", "B"}
    with pytest.raises(ValueError, match="lora_token_embedding=True"):
        TextFAREConfig(lora_rank=4, spelling=True, lora_token_embedding=False)


@pytest.mark.parametrize("spelling", [False, True])
def test_the_token_tables_lora_is_trained_and_merged(encoder: HFTextEncoder, tmp_path: Path, spelling: bool) -> None:
    tower = trainable_copy(encoder)
    add_lora(tower, 3, seed=0, token_embedding=True, spelling_of=TOKENIZER if spelling else None)
    trainable = {name for name, p in tower.named_parameters() if p.requires_grad and ".lora_" not in name}
    where = "text_model.embeddings.token_embedding"
    wanted = {f"{where}.coefficients.weight", f"{where}.directions"}
    assert trainable == wanted | ({f"{where}.coefficients.spelling"} if spelling else set())
    trained = HFTextEncoder(tower.eval(), TOKENIZER)
    torch.testing.assert_close(embed(trained, CAPTIONS), embed(encoder, CAPTIONS))
    with torch.no_grad():
        for name in trainable:
            tower.get_parameter(name).normal_()
        if spelling:
            tower.get_parameter(f"{where}.coefficients.spelling")[-1] = 0
    engines: tuple[Literal["prefix"], Literal["plain"]] = ("prefix", "plain")
    fast, plain = (Scorer(trained, engine=e).bind(["a cat"])([neighbours("a cat", "xyz!")])[0] for e in engines)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    save_lora(tower, 3, "base", "card", tmp_path, torch.float32)
    robust = load_text_encoder(encoder.module, tokenizer=TOKENIZER, adapter=tmp_path)
    texts = [*CAPTIONS, "a zebra", "xqzzt"]
    torch.testing.assert_close(embed(robust, texts), embed(trained, texts), rtol=1e-4, atol=1e-4)


def test_without_the_token_table_it_is_left_alone(encoder: HFTextEncoder, tmp_path: Path) -> None:
    config = TextFAREConfig(
        attack="random-typos", lora_rank=2, lora_token_embedding=False, batch_size=4, warmup_steps=0, max_steps=1
    )
    folder = finetune_text_encoder(encoder, CAPTIONS, tmp_path, config, held_out=CAPTIONS[:2])
    assert not any("token_embedding" in key for key in load_file(folder / DIFFUSERS))
    assert "token_embedding" not in json.loads((folder / "adapter_config.json").read_text())["target_modules"]


def test_an_adapter_that_names_code_is_refused(encoder: HFTextEncoder, folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "adapter"))
    config = json.loads((other / "adapter_config.json").read_text())
    named = config | {"megatron_config": {"a": 1}, "megatron_core": "antigravity"}
    (other / "adapter_config.json").write_text(json.dumps(named))
    with pytest.raises(ValueError, match="names code to be run"):
        load_text_encoder(encoder.module, tokenizer=TOKENIZER, adapter=other)


def test_a_lora_begins_at_its_base(encoder: HFTextEncoder, tmp_path: Path) -> None:
    config = TextFAREConfig(lora_rank=4, max_steps=1, warmup_steps=0)
    other = HFTextEncoder(trainable_copy(encoder), TOKENIZER, name="other")
    with pytest.raises(ValueError, match="cannot begin at another encoder"):
        finetune_text_encoder(encoder, CAPTIONS, tmp_path / "lora", config, start=other)
