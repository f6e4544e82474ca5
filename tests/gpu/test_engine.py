"""The engine on a CUDA device against the plain scorer on the same device, and against itself on the CPU."""

from types import ModuleType
from typing import Literal

import numpy as np
import pytest
import torch

from leaf_diffusion.attacks import Charmer, LeafAttack
from leaf_diffusion.encoders import Hidden
from leaf_diffusion.encoders.base import Feature, TextEncoder
from leaf_diffusion.scoring import Drift, Scorer
from leaf_diffusion.scoring.prefix_forest import PrefixForest
from leaf_diffusion.text import Candidates, NoNewWords, random_edits

TOWERS = ["with projection", "gelu", "legacy pooling", "whole CLIP", "bare", "open_clip", "open_clip quick"]
TOWERS += ["open_clip layer scale"]
FEATURES = ["pooled", "projected", Hidden(), Hidden(-2), Hidden(2, "all")]
PROMPTS = ["a red umbrella on a beach", 'two "cats" on a mat', "naïve café", "word " * 60]


def on(device: torch.device | str, tests: ModuleType, name: str, dtype: torch.dtype = torch.float32) -> TextEncoder:
    encoder = tests.TOWERS[name]()
    encoder.module.to(device, dtype)
    return encoder


def candidates(n: int = 60) -> list[Candidates]:
    return [random_edits(prompt, n, np.random.default_rng(i)) for i, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("feature", FEATURES, ids=str)
@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_features_are_the_towers_own_in_float32(
    forest_tests: ModuleType, device: torch.device, name: str, feature: Feature
) -> None:
    encoder = on(device, forest_tests, name)
    if feature == "projected" and not encoder.has_projection:
        pytest.skip("no projection")
    rows = forest_tests.rows_of(encoder, forest_tests.ODD + candidates(20)[0].texts())
    if not isinstance(feature, Hidden):
        rows = list(dict.fromkeys(row[: row.index(49407) + 1] for row in rows))
    got = forest_tests.features_of(PrefixForest(encoder, torch.float32), rows, feature, 1000)
    assert got.device.type == "cuda"
    wanted = encoder.features(rows, feature)
    assert (got - wanted).norm(dim=1).div(wanted.norm(dim=1)).max() < 1e-5


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.04), (torch.float16, 0.005)], ids=str)
@pytest.mark.parametrize("name", ["with projection", "gelu", "open_clip", "open_clip quick"])
@torch.no_grad()
def test_half_precision_is_as_near_to_float32_as_the_tower_itself(
    forest_tests: ModuleType, device: torch.device, name: str, dtype: torch.dtype, bound: int
) -> None:
    """The engine's residuals are float32, so it may only be nearer; `bound` is a few roundings of the type, relative."""
    exact, half = on(device, forest_tests, name), on(device, forest_tests, name, dtype)
    rows = forest_tests.rows_of(exact, candidates(60)[0].texts())
    wanted = exact.features(rows, "pooled")
    got = forest_tests.features_of(PrefixForest(half), rows, "pooled", 1000)

    def error(features: torch.Tensor) -> float:
        return float((features - wanted).norm(dim=1).div(wanted.norm(dim=1)).mean())

    assert error(got) < bound
    assert error(got) < 1.5 * error(half.features(rows, "pooled"))


@pytest.mark.parametrize("name", ["with projection", "open_clip", "gelu"])
def test_attacks_choose_what_they_choose_on_a_cpu(forest_tests: ModuleType, device: torch.device, name: str) -> None:
    given = PROMPTS[:3]
    for attack in (Charmer(n_positions=4), LeafAttack(rho=12)):
        scorers = [
            Scorer(on(device, forest_tests, name), Drift("l2"), "prefix"),
            Scorer(on("cpu", forest_tests, name), Drift("l2"), "prefix"),
            Scorer(on(device, forest_tests, name), Drift("l2"), "plain"),
        ]
        here, there, plain = (attack(given, scorer, k=2, constraint=NoNewWords()) for scorer in scorers)
        assert [r.token_ids for r in here] == [r.token_ids for r in there] == [r.token_ids for r in plain]
        assert [r.queries for r in here] == [r.queries for r in there]
        assert [r.score for r in here] == pytest.approx([r.score for r in there], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scores_are_the_plain_scorers(forest_tests: ModuleType, device: torch.device, dtype: torch.dtype) -> None:
    encoder = on(device, forest_tests, "with projection", dtype)
    fast, plain = (Scorer(encoder, engine=engine).bind(PROMPTS)(candidates()) for engine in ("prefix", "plain"))
    for one, other in zip(fast, plain, strict=True):
        assert one.device.type == "cpu"
        if dtype == torch.float32:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.max()))
        else:
            assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.98


def test_screening_returns_the_plain_float32_score(forest_tests: ModuleType, device: torch.device) -> None:
    encoder = on(device, forest_tests, "with projection")
    many = [random_edits(prompt, 400, np.random.default_rng(0)) for prompt in PROMPTS]
    screened = Scorer(encoder, precision="screen").bind(PROMPTS)(many)
    plain = Scorer(encoder, engine="plain").bind(PROMPTS)(many)
    for rough, exact in zip(screened, plain, strict=True):
        best = int(rough.argmax())
        assert float(rough[best]) == pytest.approx(float(exact[best]), rel=1e-4)
        assert float(rough[best]) == pytest.approx(float(exact.max()), rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "screen"])
@pytest.mark.parametrize("mebibytes", [64, 256])
def test_memory_stays_within_the_bound(
    device: torch.device, precision: Literal["fp32", "screen"], mebibytes: int
) -> None:
    """At a width where activations, and not what grows with the candidates, fill the memory."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from leaf_diffusion.encoders import HFTextEncoder, clip_tokenizer

    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 12}
    config = CLIPTextConfig(**sizes, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407, projection_dim=64)
    encoder = HFTextEncoder(CLIPTextModelWithProjection(config).eval().to(device), clip_tokenizer(), name="wide")
    prompts = [f"a red umbrella on a beach, number {i}" for i in range(64)]
    many = [random_edits(prompt, 150, np.random.default_rng(i)) for i, prompt in enumerate(prompts)]
    peaks = {}
    for bound in (mebibytes, 4 * mebibytes):
        score = Scorer(encoder, precision=precision, max_bytes=bound << 20).bind(prompts)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        score(many)
        peaks[bound] = (torch.cuda.max_memory_allocated() - before) / 2**20
        assert peaks[bound] <= bound
    assert peaks[4 * mebibytes] > peaks[mebibytes]  # the bound is what limits


def test_without_a_bound_half_of_the_free_memory_is_taken(forest_tests: ModuleType, device: torch.device) -> None:
    encoder = on(device, forest_tests, "with projection")
    _, whole = torch.cuda.mem_get_info()
    assert 0 < Scorer(encoder).bind(["a cat"]).max_bytes <= whole // 2
    assert Scorer(encoder, max_bytes=12345).bind(["a cat"]).max_bytes == 12345
