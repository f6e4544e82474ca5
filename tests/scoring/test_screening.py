"""Screening in half precision against float32, whose best scores it has to return."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from leaf_diffusion.encoders import HFTextEncoder
from leaf_diffusion.scoring import Scorer, prefix, prefix_forest, scorer
from leaf_diffusion.text import random_edits
from tests import tiny

MULTIPLIES = prefix_forest.multiplies_bfloat16


def hf() -> HFTextEncoder:
    deeper: tiny.Changes = {"num_hidden_layers": 3, "num_attention_heads": 4, "initializer_factor": 4.0}
    return tiny.encoder(**tiny.WIDER | deeper)


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
def test_a_cpu_without_bfloat16_scores_all_in_full_and_says_so(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_forest, "multiplies_bfloat16", lambda: False)
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
