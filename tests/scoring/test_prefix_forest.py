"""The prefix forest against the plain scorer, which is its definition."""

import warnings
from collections.abc import Callable
from typing import Literal, Unpack

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from leaf_diffusion.attacks import Charmer, Exhaustive, LeafAttack
from leaf_diffusion.encoders import HFTextEncoder, Hidden
from leaf_diffusion.encoders.base import Feature, TextEncoder
from leaf_diffusion.encoders.causal import Block, UnsupportedTowerError
from leaf_diffusion.encoders.features import MeanState, Readout
from leaf_diffusion.encoders.openclip import OpenCLIPTextEncoder
from leaf_diffusion.scoring import Drift, Margin, Scorer, prefix_forest, scorer
from leaf_diffusion.scoring.forest import Forest, SortedRows, distinct
from leaf_diffusion.scoring.prefix_forest import PrefixForest
from leaf_diffusion.text import NoNewWords, random_edits
from leaf_diffusion.tokens.token_rows import Rows
from tests import tiny
from tests.tiny import TOKENIZER

ODD = ["", "a cat", 'the "so-called" cat &amp; dog', "a  double\tspace", "café naïve Ærø", "😀🎉 party", "猫と犬",
       "x" * 300, "word " * 90, "it's <b>bold</b> &lt;3", "a cat <|endoftext|> behind the end",
       "a cat <|endoftext|>", "a cat <|endoftext|><|endoftext|>"]  # fmt: skip
DEEPER: tiny.Changes = tiny.WIDER | {"num_hidden_layers": 3, "num_attention_heads": 4, "initializer_factor": 4.0}
FEATURES: list[Feature] = ["pooled", "projected", Hidden(), Hidden(-2), Hidden(0), Hidden(2, "all"), Hidden(-1, "all")]
FEATURES += [Readout(4), MeanState(hidden=Hidden(-2))]


def hf(
    cls: type[PreTrainedModel] = CLIPTextModelWithProjection,
    dtype: torch.dtype = torch.float32,
    **changes: Unpack[tiny.Changes],
) -> HFTextEncoder:
    return HFTextEncoder(tiny.tower(cls, **DEEPER | changes).to(dtype), TOKENIZER, name="tower")


def clip_model() -> HFTextEncoder:
    return HFTextEncoder(tiny.clip(text=DEEPER, projection_dim=16), TOKENIZER)


def openclip(quick: bool = False, **changes: object) -> OpenCLIPTextEncoder:
    import open_clip

    torch.manual_seed(0)
    text = {"width": 32, "layers": 3, "heads": 4} | changes
    vision = {"image_size": 8, "patch_size": 8, "width": 16, "layers": 1, "head_width": 16}
    model = open_clip.CLIP(embed_dim=16, text_cfg=text, vision_cfg=vision, quick_gelu=quick).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ls_" in name or "positional" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return OpenCLIPTextEncoder(model)


TOWERS = {
    "with projection": hf,
    "gelu": lambda: hf(hidden_act="gelu"),
    "legacy pooling": lambda: hf(eos_token_id=2),
    "whole CLIP": clip_model,
    "bare": lambda: hf(CLIPTextModel),
    "open_clip": openclip,
    "open_clip quick": lambda: openclip(quick=True),
    "open_clip layer scale": lambda: openclip(ls_init_value=0.5),
}


def rows_of(encoder: TextEncoder, texts: list[str]) -> list[tuple[int, ...]]:
    return [tuple(row) for row in dict.fromkeys(map(tuple, encoder.tokenize(texts)))]


def features_of(forest: PrefixForest, rows: list[tuple[int, ...]], feature: Feature, max_nodes: int) -> torch.Tensor:
    """Features of token rows, in their order."""
    kept, order, place = distinct(forest.read(Rows.of(rows), feature))
    parts = list(forest.batches(kept, feature, max_nodes))
    assert [part.start for part, _ in parts] == [0, *(part.stop for part, _ in parts)][:-1]
    assert all(features.dtype == torch.float32 for _, features in parts)
    features = torch.cat([features for _, features in parts])
    result = torch.empty(len(rows), features.shape[1], device=features.device)
    result[torch.from_numpy(order)] = features[torch.from_numpy(place)]
    return result


@pytest.mark.parametrize("few_launches", [False, True], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("feature", FEATURES, ids=str)
@pytest.mark.parametrize("make", TOWERS.values(), ids=TOWERS)
@torch.no_grad()
def test_features_are_the_towers_own(
    make: Callable[[], TextEncoder], feature: Feature, few_launches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_forest, "few_launches", lambda device: few_launches)
    encoder = make()
    if feature == "projected" and not encoder.has_projection:
        pytest.skip("no projection")
    rows = rows_of(encoder, ODD + random_edits(ODD[2], 20, np.random.default_rng(0)).texts())
    if isinstance(feature, str):
        rows = list(dict.fromkeys(row[: row.index(49407) + 1] for row in rows))
    got = features_of(PrefixForest(encoder, torch.float32), rows, feature, 150)
    wanted = encoder.features(rows, feature)
    assert (got - wanted).norm(dim=1).div(wanted.norm(dim=1)).max() < 1e-5


@pytest.mark.parametrize("make", TOWERS.values(), ids=TOWERS)
def test_attacks_choose_the_same_tokens(make: Callable[[], TextEncoder]) -> None:
    encoder, prompts = make(), ["a red umbrella", 'two "cats" on a mat', "naïve café"]
    objective = Drift("l2", feature="projected" if encoder.has_projection else "pooled")
    for attack, k in ((Charmer(n_positions=4), 2), (LeafAttack(rho=12), 2), (Exhaustive(), 1)):
        given = prompts[: 1 if k == 1 else 3]
        fast, plain = (
            attack(given, Scorer(encoder, objective, engine), k=k, constraint=NoNewWords())
            for engine in ("prefix", "plain")
        )
        assert [r.token_ids for r in fast] == [r.token_ids for r in plain]
        assert [r.queries for r in fast] == [r.queries for r in plain]
        assert [r.score for r in fast] == pytest.approx([r.score for r in plain], rel=1e-4)


@pytest.mark.parametrize("bound", [1, 100_000, 1 << 29])
def test_groups_of_a_gpu_at_any_bound(monkeypatch: pytest.MonkeyPatch, bound: int) -> None:
    encoder, prompts = hf(), ["a red umbrella on a beach", "two cats", "x " * 60]
    candidates = [random_edits(prompt, 80, np.random.default_rng(0)) for prompt in prompts]
    wanted = Scorer(encoder, engine="plain").bind(prompts)(candidates)
    monkeypatch.setattr(prefix_forest, "few_launches", lambda device: True)
    precisions: list[tuple[Literal["fp32", "screen"], float]] = [("fp32", 1e-4), ("screen", 0.1)]
    for precision, rtol in precisions:
        got = Scorer(encoder, precision=precision, max_bytes=bound).bind(prompts)(candidates)
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=rtol, atol=(1e-5 if rtol < 0.1 else 0.1) * float(other.max()))


def test_a_changed_weight_is_seen_at_the_next_bind() -> None:
    encoder, prompts = hf(), ["a red umbrella"]
    candidates = [random_edits(prompts[0], 30, np.random.default_rng(0))]
    for name in ("q_proj.weight", "fc1.weight", "layer_norm2.bias", "token_embedding.weight"):
        with torch.no_grad():
            next(p for n, p in encoder.module.named_parameters() if n.endswith(name)).mul_(1.5).add_(0.01)
        fast, plain = (Scorer(encoder, engine=engine).bind(prompts)(candidates)[0] for engine in ("prefix", "plain"))
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
    # the fused optimiser does not count a tensor's versions
    optimiser = torch.optim.AdamW(encoder.module.parameters(), lr=0.05, fused=True)
    encoder.features(encoder.tokenize(prompts)).sum().backward()
    optimiser.step()
    fast, plain = (Scorer(encoder, engine=engine).bind(prompts)(candidates)[0] for engine in ("prefix", "plain"))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


class Doubled(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def doubled_layer(encoder: HFTextEncoder) -> None:
    encoder.text_model.encoder.layers[0].mlp.fc1 = Doubled(32, 64)


def hook(encoder: HFTextEncoder) -> None:
    encoder.text_model.encoder.layers[0].mlp.fc1.register_forward_hook(lambda module, given, output: 2 * output)


def other_activation(encoder: HFTextEncoder) -> None:
    encoder.text_model.encoder.layers[1].mlp.activation_fn = torch.nn.Tanh()


@pytest.mark.parametrize(
    ("change", "reason"), [(doubled_layer, "holds a Doubled"), (hook, "has hooks"), (other_activation, "is Tanh")]
)
def test_what_is_not_understood_is_scored_plainly_with_one_warning(
    change: Callable[[HFTextEncoder], None], reason: str
) -> None:
    encoder, prompts = hf(), ["a red umbrella"]
    change(encoder)
    encoder.name = f"tower with {change.__name__}"
    candidates = [random_edits(prompts[0], 30, np.random.default_rng(0))]
    scorer._warn_once.cache_clear()
    with pytest.warns(UserWarning, match=f"{encoder.name} is scored plainly.*{reason}"):
        bound = Scorer(encoder).bind(prompts)
    plain = Scorer(encoder, engine="plain").bind(prompts)
    assert torch.equal(bound(candidates)[0], plain(candidates)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Scorer(encoder).bind(prompts)


def test_offloaded_weights_are_refused() -> None:
    encoder = hf()
    encoder.module.to("meta")
    with pytest.raises(UnsupportedTowerError, match="offloaded"):
        PrefixForest(encoder, torch.float32)


def test_hidden_states_leave_no_trace() -> None:
    """transformers keeps its recording hooks on a model that was once asked for hidden states."""
    encoder = hf()
    encoder.features(encoder.tokenize(["a cat"]), Hidden(-2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Scorer(encoder).bind(["a cat"]).clean()


@pytest.mark.parametrize("bound", [60_000, 400_000])
def test_tokens_computed_at_once_stay_within_the_bound(monkeypatch: pytest.MonkeyPatch, bound: int) -> None:
    encoder, prompts = hf(), ["a red umbrella on a beach", "two cats"]
    nodes: list[Forest] = []
    build_forest = prefix_forest.build_forest

    def watched(rows: SortedRows, chunk: int, aligned: int, filled: Callable[[int], int]) -> Forest:
        nodes.append(build_forest(rows, chunk, aligned, filled))
        return nodes[-1]

    monkeypatch.setattr(prefix_forest, "build_forest", watched)
    candidates = [random_edits(prompt, 200, np.random.default_rng(0)) for prompt in prompts]
    Scorer(encoder, max_bytes=bound).bind(prompts)(candidates)
    per_node = PrefixForest(encoder, torch.float32).bytes_per_node
    assert max(len(forest.pairs) for forest in nodes) * per_node <= bound
    assert len(nodes) > 1


def test_half_precision_scores_roughly_and_once() -> None:
    encoder, prompts = hf(), ["a red umbrella on a beach", "two cats on a mat"]
    candidates = [random_edits(prompt, 300, np.random.default_rng(0)) for prompt in prompts]
    score = Scorer(encoder, precision="half").bind(prompts)
    for rough, exact in zip(score(candidates), Scorer(encoder).bind(prompts)(candidates), strict=True):
        torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1 * float(exact.max()))
        assert not torch.equal(rough, exact)
    assert score.queries == [300, 300]


@torch.no_grad()
def test_products_in_half_precision_on_a_cpu_have_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {prefix_forest.recurring(n) for n in range(1, 4097)}
    assert len(sizes) < 80
    assert all(n <= prefix_forest.recurring(n) <= max(n + 7, n * 9 // 8) for n in range(1, 4097))
    encoder = hf()
    rows: list[list[tuple[int, ...]]] = []
    seen: list[int] = []
    for n in (5, 30, 31, 90, 200):
        rows.append(rows_of(encoder, random_edits("a red umbrella on a beach", n, np.random.default_rng(n)).texts()))
    forest, block = PrefixForest(encoder, torch.bfloat16), PrefixForest._block

    def watched(
        self: PrefixForest, layer: Block, x: torch.Tensor, keys: torch.Tensor, masked: torch.Tensor,
        only: torch.Tensor | None, recurring: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:  # fmt: skip
        seen.append(len(x))
        return block(self, layer, x, keys, masked, only, recurring)

    monkeypatch.setattr(PrefixForest, "_block", watched)
    for feature in FEATURES[:2]:
        for some in rows:
            got = features_of(forest, list(dict.fromkeys(some)), feature, 4096)
            wanted = encoder.features(list(dict.fromkeys(some)), feature)
            assert (got - wanted).norm() < 0.05 * wanted.norm()
    assert set(seen) <= {-(-n // 32) * 32 for n in sizes}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_towers(dtype: torch.dtype) -> None:
    prompts = ["a red umbrella"]
    candidates = [random_edits(prompts[0], 60, np.random.default_rng(0))]
    exact = Scorer(hf(), engine="plain").bind(prompts)(candidates)[0]
    half = Scorer(hf(dtype=dtype)).bind(prompts)(candidates)[0]
    assert torch.corrcoef(torch.stack([exact, half]))[0, 1] > 0.99


def test_autocast_is_followed() -> None:
    encoder, prompts = hf(), ["a red umbrella"]
    candidates = [random_edits(prompts[0], 60, np.random.default_rng(0))]
    exact = Scorer(encoder).bind(prompts)(candidates)[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = Scorer(encoder).bind(prompts)(candidates)[0]
    assert half.dtype == torch.float32
    assert 0 < float((half - exact).abs().max()) < 0.1 * float(exact.max())


def test_margins_of_many_prompts_in_one_forest() -> None:
    encoder, prompts = hf(), ["a red umbrella", "a red cat", "a blue cat"]
    classes = encoder.features(encoder.tokenize([*prompts, "dog"])).detach()
    candidates = [random_edits(prompt, 50, np.random.default_rng(1)) for prompt in prompts]
    objective = Margin(classes, [0, 1, 2])
    fast, plain = (Scorer(encoder, objective, engine).bind(prompts)(candidates) for engine in ("prefix", "plain"))
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
