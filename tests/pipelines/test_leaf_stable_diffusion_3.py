"""What is SD3's own, with tiny seeded components, with T5 and without; the rest is in test_conventions and test_loading."""

from pathlib import Path
from typing import TypedDict

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import PreTrainedModel

from leaf_diffusion.attacks.charmer import Charmer
from leaf_diffusion.encoders import TextEncoder, clip_tokenizer, load_text_encoder
from leaf_diffusion.encoders.defences import Speller
from leaf_diffusion.pipelines import LeafStableDiffusion3Pipeline
from leaf_diffusion.text import Candidates
from tests import tiny
from tests.pipelines.test_leaf_flux import t5, t5_tokenizer

PROMPT = "a red umbrella"
WITHOUT_T5 = {"text_encoder_3": None, "tokenizer_3": None}


def tower(seed: int = 0, width: int = 16) -> PreTrainedModel:
    return tiny.tower(seed=seed, hidden_size=width, projection_dim=width, initializer_factor=5.0)


@pytest.fixture(scope="module")
def parts() -> dict[str, object]:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=32, out_channels=4,
    )  # fmt: skip
    return {
        "transformer": transformer.eval(), "vae": tiny.vae(**tiny.NEWER_VAE),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "text_encoder": tower(), "tokenizer": clip_tokenizer(), "text_encoder_2": tower(1), "tokenizer_2": clip_tokenizer(),
        **WITHOUT_T5,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(parts: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd3")
    StableDiffusion3Pipeline(**parts).save_pretrained(folder)
    return folder


def image(pipe: DiffusionPipeline, prompt: str | None = PROMPT, **options: object) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    options = {
        "height": 32,
        "width": 32,
        "num_inference_steps": 2,
        "output_type": "np",
        "generator": generator,
    } | options
    return pipe(prompt, **options).images


class Swap(TypedDict, total=False):
    """Which text encoder is exchanged, and for what."""

    text_encoder: TextEncoder
    text_encoder_2: TextEncoder


def swap(part: str, new: TextEncoder) -> Swap:
    return {"text_encoder": new} if part == "text_encoder" else {"text_encoder_2": new}


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_each_tower_is_swapped_alone(folder: Path, part: str) -> None:
    stock = LeafStableDiffusion3Pipeline.from_pretrained(folder, **WITHOUT_T5)
    swapped = LeafStableDiffusion3Pipeline.from_pipe(
        stock, **swap(part, load_text_encoder(tower(seed=7), tokenizer=clip_tokenizer()))
    )
    other = "text_encoder" if part.endswith("2") else "text_encoder_2"
    assert getattr(swapped, other) is getattr(stock, other)
    assert not np.array_equal(image(swapped), image(stock))
    with pytest.raises(ValueError, match="does not fit the pipeline"):
        LeafStableDiffusion3Pipeline.from_pipe(
            stock, **swap(part, load_text_encoder(tower(width=24), tokenizer=clip_tokenizer()))
        )


def test_attacks_and_defence(folder: Path) -> None:
    pipe = LeafStableDiffusion3Pipeline.from_pretrained(folder, **WITHOUT_T5, defence=Speller(["a", "red", "umbrella"]))
    stock = StableDiffusion3Pipeline.from_pretrained(folder, **WITHOUT_T5)
    assert np.array_equal(image(pipe, "a red umbrlla"), image(stock))
    plain = LeafStableDiffusion3Pipeline.from_pretrained(folder, **WITHOUT_T5)
    (result,) = plain.attack([PROMPT], attack=Charmer(n_positions=6))
    drifts = []
    for encoder in plain.encoders:
        clean, moved = encoder.features(encoder.tokenize([PROMPT, result.perturbed])).detach()
        drifts.append(float((moved - clean).square().sum() / clean.square().sum()))
    assert result.score == pytest.approx(sum(drifts) / 2, rel=1e-3)


def test_t5_is_exchanged_and_attacked_with_the_clips(parts: dict[str, object], folder: Path) -> None:
    whole = parts | {"text_encoder_3": t5(), "tokenizer_3": t5_tokenizer()}
    few = [Candidates.from_texts(["a red umbrlla", "a rxd umbrella"])]
    stock, second, short = StableDiffusion3Pipeline(**whole), t5(seed=4), 24
    leaf = LeafStableDiffusion3Pipeline.from_pipe(stock, text_encoder_3=second)
    assert np.array_equal(
        image(leaf, max_sequence_length=short),
        image(StableDiffusion3Pipeline(**whole | {"text_encoder_3": second}), max_sequence_length=short),
    )
    assert not np.array_equal(image(leaf, max_sequence_length=short), image(stock, max_sequence_length=short))
    assert len(leaf.encoders) == 3
    clips, third, every = (
        leaf.scorer(encoders=names).bind([PROMPT])(few)[0]
        for names in (["text_encoder", "text_encoder_2"], ["text_encoder_3"], None)
    )
    torch.testing.assert_close(every, (2 * clips + third) / 3)
    # a pipeline that was saved without T5 is given one as it is, as by diffusers
    given = LeafStableDiffusion3Pipeline.from_pretrained(
        folder,
        text_encoder_3=second,
        tokenizer_3=t5_tokenizer(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
    )
    assert given.text_encoder_3 is second
    assert np.array_equal(image(given, max_sequence_length=short), image(leaf, max_sequence_length=short))
