"""Screening in half precision against float32, whose best scores it has to return."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from leaf_diffusion.encoders import HFTextEncoder
from leaf_diffusion.encoders.causal import Affine
from leaf_diffusion.scoring import Drift, Scorer, int8, prefix, prefix_forest, scorer
from leaf_diffusion.text import random_edits
from tests import tiny

MULTIPLIES = prefix_forest.multiplies_bfloat16


def hf() -> HFTextEncoder:
    deeper: tiny.Changes = {"num_hidden_layers": 3, "num_attention_heads": 4, "initializer_factor": 4.0}
    return tiny.encoder(**tiny.WIDER | deeper)


@pytest.fixture(params=["bfloat16", "int8"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a CPU screens in: with bfloat16 and without."""
    if request.param == "int8" and not int8.multiplies_int8():
        pytest.skip("this torch has no products in int8")
    monkeypatch.setattr(prefix_forest, "multiplies_bfloat16", lambda: request.param == "bfloat16")
    return str(request.param)


@pytest.mark.usefixtures("products")
def test_screening_returns_exact_best_scores() -> None:
    encoder, prompts = hf(), ["a red umbrella on a beach", "two cats on a mat", "x"]
    candidates = [
        random_edits(prompt, n, np.random.default_rng(0)) for prompt, n in zip(prompts, (400, 300, 5), strict=True)
    ]
    screened = Scorer(encoder, precision="screen").bind(prompts)(candidates)
    full = Scorer(encoder).bind(prompts)(candidates)
    for rough, exact in zip(screened, full, strict=True):
        assert int(rough.argmax()) == int(exact.argmax())
        assert float(rough.max()) == pytest.approx(float(exact.max()), rel=1e-5)
        torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1 * float(exact.max()))
    assert len(screened[0].unique()) > prefix.SCREENED


@pytest.mark.usefixtures("products")
def test_screening_scores_in_full_as_many_as_are_gone_on_with() -> None:
    encoder, prompts = hf(), ["a red umbrella on a beach", "two cats on a mat"]
    candidates = [random_edits(prompt, 60, np.random.default_rng(1)) for prompt in prompts]
    full = Scorer(encoder).bind(prompts)(candidates)
    equal = {}
    for best in (1, 20, 70):
        screened = Scorer(encoder, precision="screen").bind(prompts)(candidates, best=best)
        for rough, exact in zip(screened, full, strict=True):
            assert set(exact.topk(min(best, 60)).indices.tolist()) <= set(
                rough.topk(min(best + best // 4, 60)).indices.tolist()
            )
        equal[best] = [int(torch.isclose(a, b, rtol=1e-5).sum()) for a, b in zip(screened, full, strict=True)]
    assert all(15 <= n < 25 for n in equal[1])
    assert all(25 <= n < 60 for n in equal[20])
    assert equal[70] == [60, 60]


@pytest.mark.parametrize("precision", ["screen", "half"])
def test_a_cpu_with_neither_bfloat16_nor_int8_scores_all_in_full_and_says_so(
    precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_forest, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(prefix_forest, "multiplies_int8", lambda: False)
    scorer._warn_once.cache_clear()
    encoder, prompts = hf(), ["a red umbrella on a beach"]
    candidates = [random_edits(prompts[0], 60, np.random.default_rng(1))]
    with pytest.warns(UserWarning, match="no products in bfloat16, all is scored in float32"):
        bound = Scorer(encoder, precision=precision).bind(prompts)
    assert torch.equal(bound(candidates)[0], Scorer(encoder).bind(prompts)(candidates)[0])
    # a tower that is in bfloat16 itself stays so
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Scorer(HFTextEncoder(tiny.tower().bfloat16(), tiny.TOKENIZER, name="half"), precision=precision).bind(prompts)


def test_a_layer_in_int8_is_near_the_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    for bias in (torch.randn(24, generator=generator), None):
        layer = Affine(torch.randn(24, 16, generator=generator), bias)
        small = int8.Int8.of(layer)
        for x in (
            torch.randn(40, 16, generator=generator),
            torch.rand(7, 16, generator=generator) + 3,
            torch.zeros(2, 16),
        ):
            wanted = torch.nn.functional.linear(x, layer.weight, layer.bias)
            assert (small(x) - wanted).norm() <= 0.02 * wanted.norm() + 1e-6
        assert small(torch.full((2, 16), float("inf"))).isnan().all()


def test_a_tower_that_is_broken_is_named_when_screened(products: str) -> None:
    broken = hf()
    next(iter(broken.module.parameters())).data.fill_(float("nan"))
    candidates = [random_edits("a red cat", 20, np.random.default_rng(1))]
    with pytest.raises(ValueError, match="NaN or infinity"):
        Scorer(broken, Drift("l2", anchor=hf()), precision="screen").bind(["a red cat"])(candidates)


def test_bfloat16_is_what_the_cpu_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for known, expected in (({"avx512_bf16": False}, False), ({"avx512_bf16": True}, True), ({"sve": True}, True)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        assert MULTIPLIES.__wrapped__() is expected


def test_screening_is_of_the_prefix_engine() -> None:
    with pytest.raises(ValueError, match='belongs to engine="prefix"'):
        Scorer(hf(), engine="plain", precision="screen")
    unknown: Any = "double"
    with pytest.raises(ValueError, match="unknown precision 'double'"):
        Scorer(hf(), precision=unknown)
