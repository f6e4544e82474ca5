"""What is XL's own, with tiny seeded components: each tower swapped alone, attacks on both together."""

from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, StableDiffusionXLPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from leaf_diffusion.attacks.charmer import Charmer
from leaf_diffusion.encoders import clip_tokenizer, load_text_encoder
from leaf_diffusion.encoders.base import Feature
from leaf_diffusion.encoders.defences import Speller
from leaf_diffusion.pipelines import LeafStableDiffusionXLPipeline
from tests import tiny

PROMPT = "a red umbrella"


def tower(
    cls: type[PreTrainedModel] = CLIPTextModel, seed: int = 0, **changes: Unpack[tiny.Changes]
) -> PreTrainedModel:
    return tiny.tower(cls, seed, **tiny.Changes(initializer_factor=5.0) | changes)


@pytest.fixture(scope="module")
def parts() -> dict[str, object]:
    unet = tiny.unet(
        cross_attention_dim=32, attention_head_dim=(2, 4), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 8,
    )  # fmt: skip
    return {
        "unet": unet, "vae": tiny.vae(), "scheduler": EulerDiscreteScheduler(),
        "text_encoder": tower(), "tokenizer": clip_tokenizer(),
        "text_encoder_2": tower(CLIPTextModelWithProjection, seed=1), "tokenizer_2": clip_tokenizer(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(parts: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xl")
    StableDiffusionXLPipeline(**parts, add_watermarker=False).save_pretrained(folder)
    return folder


def image(pipe: DiffusionPipeline, prompt: str | None = PROMPT, **options: object) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=2, generator=generator, output_type="np", **options).images


class Swap(TypedDict, total=False):
    """Which text encoder is exchanged, and for what."""

    text_encoder: Path
    text_encoder_2: Path


def swap(part: str, new: Path) -> Swap:
    return {"text_encoder": new} if part == "text_encoder" else {"text_encoder_2": new}


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_each_tower_is_swapped_alone(folder: Path, part: str, tmp_path: Path) -> None:
    new = tower(CLIPTextModelWithProjection, seed=7)
    new.save_pretrained(tmp_path / "new")
    clip_tokenizer().save_pretrained(tmp_path / "new")
    stock = LeafStableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    swapped = LeafStableDiffusionXLPipeline.from_pretrained(
        folder, add_watermarker=False, **swap(part, tmp_path / "new")
    )
    other = "text_encoder" if part.endswith("2") else "text_encoder_2"
    for name, same in ((part, False), (other, True)):
        states = [getattr(pipe, name).state_dict() for pipe in (stock, swapped)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0]) is same
        assert type(getattr(swapped, name)) is type(getattr(stock, name))  # the pooled output stays the second's
    assert not np.array_equal(image(swapped), image(stock))
    shared = LeafStableDiffusionXLPipeline.from_pipe(stock, **swap(part, tmp_path / "new"))
    assert np.array_equal(image(shared), image(swapped))
    assert str(tmp_path / "new") in [encoder.name for encoder in swapped.encoders]


def test_a_bare_model_keeps_the_projection(folder: Path) -> None:
    stock = LeafStableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    projection = stock.text_encoder_2.text_projection.weight.clone()
    pipe = LeafStableDiffusionXLPipeline.from_pipe(
        stock, text_encoder_2=load_text_encoder(tower(CLIPTextModel, seed=9), tokenizer=clip_tokenizer())
    )
    assert torch.equal(pipe.text_encoder_2.text_projection.weight, projection)
    assert image(pipe).shape == image(stock).shape


def test_misfits_change_nothing(folder: Path) -> None:
    pipe = LeafStableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    before = image(pipe)
    good, bad = (
        load_text_encoder(tower(CLIPTextModelWithProjection, seed=3, hidden_size=width), tokenizer=clip_tokenizer())
        for width in (16, 32)
    )
    with pytest.raises(ValueError, match=r"width .hidden_size.: the pipeline has 16, the new encoder 32"):
        LeafStableDiffusionXLPipeline.from_pipe(pipe, text_encoder=good, text_encoder_2=bad)
    wide = load_text_encoder(tower(CLIPTextModelWithProjection, seed=3, projection_dim=12), tokenizer=clip_tokenizer())
    with pytest.raises(ValueError, match="projection width: the pipeline has 8"):
        LeafStableDiffusionXLPipeline.from_pipe(pipe, text_encoder_2=wide)
    assert np.array_equal(image(pipe), before)
    with pytest.raises(ValueError, match="pickles"):
        LeafStableDiffusionXLPipeline.from_pretrained(folder, use_safetensors=False)


def test_attacks_weigh_both_towers(folder: Path) -> None:
    pipe = LeafStableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    (result,) = pipe.attack([PROMPT], attack=Charmer(n_positions=6), k=1)
    drifts = []
    whats: tuple[Feature, Feature] = ("pooled", "projected")
    for encoder, what in zip(pipe.encoders, whats, strict=True):
        clean, moved = encoder.features(encoder.tokenize([PROMPT, result.perturbed]), what).detach()
        drifts.append(float((moved - clean).square().sum() / clean.square().sum()))
    assert result.score == pytest.approx(sum(drifts) / 2, rel=1e-3)
    assert result.distance == 1
    refiner = LeafStableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    refiner.register_modules(text_encoder=None, tokenizer=None)
    assert [encoder.name.endswith("text_encoder_2") for encoder in refiner.encoders] == [True]
    assert refiner.attack([PROMPT], attack=Charmer(n_positions=3))[0].distance == 1
    with pytest.raises(ValueError, match="no text_encoder that could be exchanged"):
        LeafStableDiffusionXLPipeline.from_pipe(refiner, text_encoder=tower())


def test_a_defence_reads_both_prompts(folder: Path) -> None:
    speller = Speller(["a", "red", "umbrella"])
    pipe = LeafStableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False, defence=speller)
    stock = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    assert np.array_equal(image(pipe, "a red umbrlla"), image(stock))
    assert np.array_equal(image(pipe, prompt_2="a red umbrlla"), image(stock, prompt_2=PROMPT))
