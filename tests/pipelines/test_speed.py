"""Attention kernels, layout and compilation: which are in use is said, and the images stay the same."""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import XFormersAttnProcessor

from leaf_diffusion.diffusion.families import denoiser_of
from leaf_diffusion.diffusion.speed import attention_of, set_attention, set_layout
from leaf_diffusion.evaluation.t2i.judges import Judges
from leaf_diffusion.evaluation.t2i.options import parse
from leaf_diffusion.evaluation.t2i.setup import prepare
from leaf_diffusion.evaluation.t2i.specification import identity

if TYPE_CHECKING:
    from tests.pipelines.conftest import Kind


@pytest.fixture
def pipe(kind: Kind) -> DiffusionPipeline:
    return kind.leaf(**kind.parts())


def test_sdpa_is_the_default_and_changes_nothing(kind: Kind, pipe: DiffusionPipeline) -> None:
    before = kind.image(pipe)
    processors = dict(denoiser_of(pipe).attn_processors)
    assert set_attention(pipe) == attention_of(pipe) == "sdpa"
    assert denoiser_of(pipe).attn_processors == processors
    assert np.array_equal(kind.image(pipe), before)
    unknown: Any = "flash"
    with pytest.raises(ValueError, match="unknown attention 'flash'"):
        set_attention(pipe, unknown)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the name, as where xformers is installed."""
    module = types.ModuleType("xformers")
    module.__spec__ = importlib.util.spec_from_loader("xformers", None)
    monkeypatch.setitem(sys.modules, "xformers", module)


@pytest.mark.parametrize("installed", [True, False])
def test_where_xformers_cannot_run(
    kind: Kind, pipe: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    if installed:
        stand_in(monkeypatch)
        reason = "its kernels need a CUDA device, and the pipeline is on cpu"
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        reason = r"the package is not installed \(pip install xformers\)"
    before = kind.image(pipe)
    with pytest.raises(ValueError, match=f"attention xformers cannot run here: {reason}"):
        set_attention(pipe, "xformers")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert set_attention(pipe, "auto") == "sdpa"
    (warning,) = told
    assert "attention auto uses sdpa" in str(warning.message)
    assert warning.filename == __file__
    assert np.array_equal(kind.image(pipe), before)


def test_a_build_that_fails_is_named_and_undone(
    kind: Kind, pipe: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(type(denoiser_of(pipe)), "device", torch.device("cuda:0"))  # as where there is a GPU

    def fail(*_: object) -> None:
        raise RuntimeError("xFormers was built for PyTorch 1.13")

    monkeypatch.setattr(type(pipe), "enable_xformers_memory_efficient_attention", fail)
    with pytest.raises(ValueError, match=r"built for PyTorch 1\.13"):
        set_attention(pipe, "xformers")
    monkeypatch.setattr(type(pipe), "enable_xformers_memory_efficient_attention", lambda *_: None)
    with pytest.raises(ValueError, match="diffusers has no xformers kernels for"):
        set_attention(pipe, "xformers")


def test_back_from_xformers_to_sdpa(kinds: dict[str, Kind]) -> None:
    kind = kinds["sd"]
    pipe = kind.leaf(**kind.parts())
    before = kind.image(pipe)
    pipe.unet.set_attn_processor(XFormersAttnProcessor())
    assert attention_of(pipe) == "xformers"
    assert set_attention(pipe, "sdpa") == attention_of(pipe) == "sdpa"
    assert np.array_equal(kind.image(pipe), before)


def test_the_evaluation_keeps_what_drew_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    few = ["--encoders", "original", "--limit", "1", "--protocols", "adaptive"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    judges = Judges(clip=None, space="none", scenes=None, real=[])
    found: dict[str, dict[str, object]] = {}
    for name, arguments in {"default": [], "auto": ["--attention", "auto"], "layout": ["--channels-last"]}.items():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            setup = prepare(parse([*few, *arguments]))
        assert len([each for each in told if "attention auto uses sdpa" in str(each.message)]) == (name == "auto")
        found[name] = identity(setup, judges)
        if name == "auto":  # as if it had been there
            setup.pipeline.unet.set_attn_processor(XFormersAttnProcessor())
            found["xformers"] = identity(setup, judges)
    assert found["auto"] == found["default"]
    assert not {"attention", "channels_last", "compile"} & found["default"].keys()
    assert found["layout"] == found["default"] | {"channels_last": True}
    assert found["xformers"] == found["default"] | {"attention": "xformers"}
    with pytest.raises(ValueError, match="attention xformers cannot run here: the package is not installed"):
        prepare(parse([*few, "--attention", "xformers"]))


@pytest.mark.skipif(
    importlib.util.find_spec("xformers") is None or not torch.cuda.is_available(),
    reason="needs xformers and a CUDA device",
)
def test_xformers_and_sdpa_draw_the_same(kinds: dict[str, Kind]) -> None:
    kind = kinds["sd"]
    pipe = kind.leaf(**kind.parts()).to("cuda")
    before = kind.image(pipe)
    assert set_attention(pipe, "xformers") == "xformers"
    np.testing.assert_allclose(kind.image(pipe), before, atol=1e-3)


def test_channels_last(kind: Kind, pipe: DiffusionPipeline) -> None:
    before = kind.image(pipe)
    if kind.name == "sd3":
        pipe.transformer.pos_embed.proj = torch.nn.Conv2d(4, 32, 1)
        with pytest.raises(ValueError, match="channels_last is for convolutions, and SD3Transformer2DModel has none"):
            set_layout(pipe, channels_last=True)
        return
    set_layout(pipe, channels_last=True)
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(kind.image(pipe), before, atol=1e-4)


def test_compiled(kinds: dict[str, Kind], monkeypatch: pytest.MonkeyPatch) -> None:
    kind = kinds["sd"]
    pipe = kind.leaf(**kind.parts())
    before = kind.image(pipe)
    compiled: list[Callable[..., object]] = []

    def watched(call: Callable[..., object], *_: object, **__: object) -> Callable[..., object]:
        compiled.append(call)
        return call

    monkeypatch.setattr(torch, "compile", watched)
    set_layout(pipe, compiled=True)
    assert len(compiled) == 1
    assert np.array_equal(kind.image(pipe), before)
