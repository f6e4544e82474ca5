"""Leaf pipelines that read prompts with one T5 or language model: bit by bit the stock ones, exchanged, defended, attacked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

from leaf_diffusion.attacks import Charmer
from leaf_diffusion.diffusion.families import FAMILIES, family_of
from leaf_diffusion.diffusion.pipeline_encoder import PipelineEncoder
from leaf_diffusion.diffusion.pipeline_scorer import PipelineScorer, fast_scorer
from leaf_diffusion.encoders.defences import Speller
from leaf_diffusion.encoders.features import MeanState, Readout
from leaf_diffusion.pipelines import LeafPixArtSigmaPipeline, LeafQwenImagePipeline, LeafZImagePipeline
from leaf_diffusion.scoring import Drift, Margin
from leaf_diffusion.text import Candidates
from tests.pipelines.languages import DRAWING, drawing, image
from tests.pipelines.test_harden import moved
from tests.pipelines.test_leaf_flux import t5

PROMPT = "a red umbrella"
SPELLER = Speller(["a", "red", "umbrella"])
FEW = [Candidates.from_texts(["a red umbrlla", "A red umbrella"])]


@pytest.fixture(scope="module", params=list(DRAWING))
def stock(request: pytest.FixtureRequest) -> Any:
    """Each family's stock pipeline, which no test changes."""
    return drawing(request.param)


def leaf_of(pipe: Any) -> Any:
    return family_of(pipe).leaf_class()


def other(pipe: Any) -> torch.nn.Module:
    """The pipeline's text encoder with other weights."""
    name = next(name for name, (maker, _) in DRAWING.items() if type(maker()) is type(pipe))
    return moved(DRAWING[name][0]().text_encoder)


def test_bitwise_the_stock_image(stock: Any) -> None:
    leaf = leaf_of(stock).from_pipe(stock)
    expected = image(stock)
    assert np.array_equal(image(leaf), expected)
    assert leaf.components.keys() == stock.components.keys()
    assert not np.array_equal(image(leaf, "a red umbrlla"), expected)
    again = type(stock).from_pipe(leaf)
    assert type(again) is type(stock)
    assert np.array_equal(image(again), expected)


def test_stock_loads_what_it_saves_and_it_loads_what_stock_saves(stock: Any, tmp_path: Path) -> None:
    new = other(stock)
    swapped = leaf_of(stock).from_pipe(stock, text_encoder=new)
    assert stock.text_encoder is not new
    expected = image(swapped)
    assert not np.array_equal(expected, image(stock))
    swapped.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == type(stock).__name__
    back = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(back) is type(stock)
    assert np.array_equal(image(back), expected)
    leaf = leaf_of(stock).from_pretrained(tmp_path, text_encoder=stock.text_encoder)
    assert np.array_equal(image(leaf), image(stock))
    assert np.array_equal(image(leaf_of(stock).from_pretrained(tmp_path)), expected)


def test_the_attack_moves_what_the_denoiser_is_given(stock: Any) -> None:
    leaf = leaf_of(stock).from_pipe(stock)
    (encoder,) = leaf.encoders
    fast = leaf.scorer(encoders=["text_encoder"])
    assert fast.encoder.fingerprint == encoder.fingerprint
    (mine,), (slow,) = (each.bind([PROMPT])(FEW) for each in (fast, PipelineScorer(PipelineEncoder(stock))))
    torch.testing.assert_close(mine, slow, rtol=1e-4, atol=1e-9)
    assert fast_scorer(stock).name == fast.name


@pytest.fixture(scope="module")
def z_image() -> Any:
    return drawing("z-image")


def test_sources_of_a_text_encoder(z_image: Any, tmp_path: Path) -> None:
    new = other(z_image)
    new.save_pretrained(tmp_path / "hardened")
    swapped = LeafZImagePipeline.from_pipe(z_image, text_encoder=str(tmp_path / "hardened"))
    tower = LeafZImagePipeline.from_pipe(z_image, text_encoder=new).encoders[0]
    tower.defence = SPELLER
    defended = LeafZImagePipeline.from_pipe(z_image, text_encoder=tower)
    by_components = LeafZImagePipeline.from_pipe(z_image, components={"text_encoder": new})
    images = [image(each) for each in (swapped, defended, by_components)]
    assert all(np.array_equal(each, images[0]) for each in images[1:])
    assert [each.encoders[0].name for each in (swapped, by_components)] == [str(tmp_path / "hardened"), "Qwen3Model"]
    assert swapped.encoders[0].fingerprint != LeafZImagePipeline.from_pipe(z_image).encoders[0].fingerprint
    assert np.array_equal(image(defended, "a red umbrlla"), images[0])  # an encoder brings its defence along
    with pytest.raises(ValueError, match="text_encoder: the text encoder does not fit the pipeline"):
        LeafZImagePipeline.from_pipe(z_image, text_encoder=t5())
    with pytest.raises(ValueError, match="no text_encoder_2 that could be exchanged"):
        LeafZImagePipeline.from_pipe(z_image, text_encoder_2=new)


def test_without_a_text_encoder(z_image: Any, tmp_path: Path) -> None:
    z_image.save_pretrained(tmp_path)
    leaf = LeafZImagePipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    states, negative = z_image.encode_prompt([PROMPT])
    given = {"prompt_embeds": states, "negative_prompt_embeds": negative}
    assert np.array_equal(image(leaf, None, **given), image(z_image))
    assert leaf.encoders == []
    with pytest.raises(ValueError, match="has no text encoder that could be attacked"):
        leaf.attack([PROMPT])
    with pytest.raises(ValueError, match="has no text encoder 'text_encoder'; it has: none"):
        leaf.attack([PROMPT], encoders=["text_encoder"])


def test_the_defence_reads_prompts_and_no_negative_ones() -> None:
    stock = drawing("qwen-image")
    leaf = LeafQwenImagePipeline.from_pipe(stock, defence=SPELLER)
    assert np.array_equal(image(leaf, "a red umbrlla"), image(stock))
    guided = {"true_cfg_scale": 4.0, "negative_prompt": "a rxd umbrela"}
    expected = image(stock, **guided)
    assert np.array_equal(image(leaf, "a red umbrlla", **guided), expected)
    assert not np.array_equal(image(stock, **{**guided, "negative_prompt": PROMPT}), expected)
    with pytest.raises(ValueError, match="has to be of type"):
        leaf(prompt=5, height=16, width=16)
    assert leaf._defence is SPELLER  # a call that failed leaves it where it was


def test_lists_of_prompts_stay_what_they_are(z_image: Any) -> None:
    prompts, negative = [PROMPT, "two cats"], ["a dog", "a cat"]
    leaf = LeafZImagePipeline.from_pipe(z_image)
    first = leaf.encode_prompt(prompts, negative_prompt=negative)
    assert (prompts, negative) == ([PROMPT, "two cats"], ["a dog", "a cat"])
    for some, again in zip(first, z_image.encode_prompt(prompts, negative_prompt=negative), strict=True):
        assert all(map(torch.equal, some, again))
    assert prompts[0] != PROMPT  # the stock class writes its template into them


def test_objectives_on_states(z_image: Any) -> None:
    leaf = LeafZImagePipeline.from_pipe(z_image)
    plain = leaf.scorer()
    (found,) = leaf.attack([PROMPT], attack=Charmer(n_positions=1, alphabet="x"), constraint=None)
    assert (found.distance, found.score > 0) == (1, True)
    for same in (
        Drift("l2"),
        Drift("l2", feature="pooled"),
        Drift("l2", feature=Readout()),
    ):  # no CLIP: no pooled state
        assert torch.equal(leaf.scorer(same).bind([PROMPT])(FEW)[0], plain.bind([PROMPT])(FEW)[0])
    assert "mean state" in leaf.scorer(Drift("cosine", feature=MeanState())).objective_name
    for refused in (Margin(torch.eye(2), [0]), Drift("l2", anchor=leaf.encoders[0])):
        with pytest.raises(ValueError, match="has token states alone: attack the CLIPs by their names"):
            leaf.scorer(refused)


def test_single_files_are_refused_where_diffusers_has_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="diffusers loads no PixArtSigmaPipeline from a single file: give its folder"):
        LeafPixArtSigmaPipeline.from_single_file(tmp_path / "pixart.safetensors")


def test_a_language_model_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    drawing("qwen-image").save_pretrained(tmp_path)
    file = tmp_path / "text_encoder" / "model.safetensors"
    stored = load_file(file)
    assert not any("language_model" in name for name in stored)  # older names than the module's own
    del stored["model.layers.1.mlp.up_proj.weight"]
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors of Qwen2_5_VL\w+ are missing, such as .*layers.1.mlp.up_proj"):
        LeafQwenImagePipeline.from_pretrained(tmp_path)


@pytest.fixture
def no_z_image() -> Iterator[None]:
    family = FAMILIES.pop("ZImagePipeline")
    yield
    FAMILIES["ZImagePipeline"] = family


def test_what_no_fast_tower_reads_is_read_by_the_pipeline_itself(z_image: Any, no_z_image: None) -> None:
    with pytest.warns(UserWarning, match="which is slow: ZImagePipeline is no pipeline class that is known here"):
        assert isinstance(fast_scorer(z_image), PipelineScorer)
    with pytest.raises(ValueError, match="attacked together, none by its name: ZImagePipeline is no pipeline class"):
        fast_scorer(z_image, ["text_encoder"])


def test_a_lora_of_a_t5_is_merged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    stock = drawing("pixart-sigma")
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(t5(), peft.LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights=False))
    wrapped.save_pretrained(tmp_path)
    leaf = LeafPixArtSigmaPipeline.from_pipe(stock, adapter=tmp_path)
    merged = wrapped.merge_and_unload()
    assert isinstance(leaf.text_encoder, T5EncoderModel)
    assert np.array_equal(image(leaf), image(leaf_of(stock).from_pipe(stock, text_encoder=merged)))
    assert not np.array_equal(image(leaf), image(stock))
