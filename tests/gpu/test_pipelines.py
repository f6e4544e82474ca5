"""The pipelines on a CUDA device: the stock images bit by bit, offloading with a robust encoder, attention, compilation."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from leaf_diffusion.attacks import Charmer
from leaf_diffusion.diffusion.families import denoiser_of
from leaf_diffusion.diffusion.speed import attention_of, set_attention, set_layout
from leaf_diffusion.encoders import load_text_encoder
from leaf_diffusion.encoders.base import TextEncoder

if TYPE_CHECKING:
    from tests.pipelines.conftest import Kind

KINDS = ["sd", "xl", "sd3"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tiny: ModuleType) -> Kind:
    return tiny.KINDS[request.param]


def moved(pipe: DiffusionPipeline, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    return pipe.to("cuda", dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_images_are_the_stock_pipelines(kind: Kind, dtype: torch.dtype, repeatable: None) -> None:
    stock, leaf = (kind.image(moved(maker(**kind.parts()), dtype)) for maker in (kind.stock, kind.leaf))
    assert np.isfinite(leaf).all()
    assert leaf.std() > 0
    assert np.array_equal(stock, leaf)


@pytest.fixture
def repeatable() -> Iterator[None]:
    """The same kernels for both sides."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def robust(kind: Kind, tiny: ModuleType, part: str = "text_encoder") -> TextEncoder:
    return load_text_encoder(kind.new_tower(part), tokenizer=tiny.TOKENIZER)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_swapped_encoder_goes_where_the_pipeline_is(kind: Kind, tiny: ModuleType, dtype: torch.dtype) -> None:
    for part in kind.towers:
        pipe = kind.leaf.from_pipe(
            moved(kind.leaf(**kind.parts()), dtype), dtype=dtype, **{part: robust(kind, tiny, part)}
        )
        new = getattr(pipe, part)
        assert (new.device.type, new.dtype) == ("cuda", dtype)
        assert all(each.device.type == "cuda" and each.dtype == dtype for each in new.parameters())
        image = kind.image(pipe)
        assert np.isfinite(image).all()
        assert not np.array_equal(image, kind.image(moved(kind.leaf(**kind.parts()), dtype)))


@pytest.mark.parametrize("switch", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_a_robust_encoder(kind: Kind, tiny: ModuleType, switch: str, repeatable: None) -> None:
    whole = moved(kind.leaf.from_pipe(kind.leaf(**kind.parts()), text_encoder=robust(kind, tiny)))
    wanted = kind.image(whole)
    pipe = kind.leaf.from_pipe(kind.leaf(**kind.parts()), text_encoder=robust(kind, tiny))
    getattr(pipe, switch)()
    np.testing.assert_allclose(kind.image(pipe), wanted, atol=1e-4)
    prompts, attack = ["a red umbrella", "two cats"], Charmer(n_positions=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an offloaded tower is scored plainly is tested below
        found, before = (each.attack(prompts, attack=attack) for each in (pipe, whole))
    assert [each.perturbed for each in found] == [each.perturbed for each in before]
    assert [each.score for each in found] == pytest.approx([each.score for each in before], rel=1e-3)
    np.testing.assert_allclose(kind.image(pipe), wanted, atol=1e-4)  # and the images go on


def test_a_robust_encoder_into_an_offloaded_pipeline(tiny: ModuleType) -> None:
    kind = tiny.KINDS["sd"]
    pipe = kind.leaf(**kind.parts())
    pipe.enable_model_cpu_offload()
    swapped = kind.leaf.from_pipe(pipe, text_encoder=robust(kind, tiny))
    swapped.enable_model_cpu_offload()
    assert np.isfinite(kind.image(swapped)).all()


def test_xformers_where_it_runs_and_where_it_does_not(tiny: ModuleType) -> None:
    kind = tiny.KINDS["sd"]
    pipe = moved(kind.leaf(**kind.parts()), torch.float16)
    before = kind.image(pipe)
    try:
        used = set_attention(pipe, "xformers")
    except ValueError as error:
        reason = str(error)
        assert "attention xformers cannot run here: " in reason
        assert attention_of(pipe) == "sdpa"
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert set_attention(pipe, "auto") == "sdpa"
        assert len([each for each in told if "attention auto uses sdpa" in str(each.message)]) == 1
        assert np.array_equal(kind.image(pipe), before)
        if importlib.util.find_spec("xformers") is None:
            pytest.skip("xformers is not installed; it was refused clearly, and auto fell back")
        pytest.skip(f"refused clearly, and auto fell back: {reason}")
    assert used == attention_of(pipe) == "xformers"
    np.testing.assert_allclose(kind.image(pipe), before, atol=5e-2)
    assert set_attention(pipe, "sdpa") == "sdpa"
    np.testing.assert_allclose(kind.image(pipe), before, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_channels_last_draws_the_same(tiny: ModuleType, dtype: torch.dtype) -> None:
    kind = tiny.KINDS["sd"]
    pipe = moved(kind.leaf(**kind.parts()), dtype)
    before = kind.image(pipe)
    set_layout(pipe, channels_last=True)
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(kind.image(pipe), before, atol=1e-4 if dtype == torch.float32 else 5e-2)


def test_one_generator_on_the_cpu_draws_alike_everywhere(kind: Kind) -> None:
    here, there = kind.leaf(**kind.parts()), moved(kind.leaf(**kind.parts()))
    np.testing.assert_allclose(kind.image(here), kind.image(there), atol=2e-3)


def test_attacks_in_half_precision(kind: Kind) -> None:
    pipe = moved(kind.leaf(**kind.parts()), torch.float16)
    (result,) = pipe.attack(["a red umbrella"], attack=Charmer(n_positions=3))
    assert result.distance == 1
    assert result.score > 0
    assert denoiser_of(pipe).dtype == torch.float16
