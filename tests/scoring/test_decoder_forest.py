"""The prefix engine of language models: the plain engine's numbers, whatever the model is made of."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from leaf_diffusion.attacks import Charmer
from leaf_diffusion.encoders.causal import UnsupportedTowerError
from leaf_diffusion.encoders.decoder import DecoderTextEncoder
from leaf_diffusion.encoders.features import MeanState, Readout
from leaf_diffusion.scoring import Drift, Scorer
from leaf_diffusion.scoring.decoder_forest import DecoderForest
from leaf_diffusion.scoring.prefix import PrefixScore
from leaf_diffusion.text import Candidates
from leaf_diffusion.tokens.reading import Reading
from tests.pipelines.languages import SIZES, byte_level_tokenizer, qwen_image

PROMPTS = ["a red umbrella on a beach", "cat", "<|endoftext|> two cats"]
TOKENIZER = byte_level_tokenizer()
MODELS: dict[str, Callable[[], nn.Module]] = {
    "qwen2": lambda: Qwen2Model(Qwen2Config(vocab_size=320, **SIZES)),
    "qwen2-sliding": lambda: Qwen2Model(
        Qwen2Config(vocab_size=320, use_sliding_window=True, sliding_window=5, max_window_layers=1, **SIZES)
    ),
    "qwen2.5-vl": lambda: qwen_image().text_encoder,
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(vocab_size=320, **SIZES)),
    "gemma2": lambda: Gemma2Model(Gemma2Config(vocab_size=320, sliding_window=6, attn_logit_softcapping=2.0, **SIZES)),
    "mistral": lambda: MistralModel(MistralConfig(vocab_size=320, sliding_window=7, **SIZES)),
    "llama": lambda: LlamaModel(
        LlamaConfig(
            vocab_size=320, attention_bias=True, mlp_bias=True,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            **SIZES,
        )
    ),
}  # fmt: skip
READINGS = {
    "plain": Reading(64),
    "template": Reading(64, "<|im_start|>describe: ", "<|im_end|> now", dropped=(2, 4), layers=(-2,)),
    "layers": Reading(64, "<|im_start|>say ", layers=(0, 1, -1)),
    "padded": Reading(40, "<|im_start|>", layers=(1, 2), padded=True),
    "unmasked": Reading(32, padded=True, masked=False),
}


def encoder(model: str, reading: str = "template") -> DecoderTextEncoder:
    torch.manual_seed(0)
    module = MODELS[model]().eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():  # norms that do something, logits that differ
            weight.add_(0.3 * torch.randn_like(weight) if weight.ndim == 1 else 3 * weight)
            assert torch.isfinite(weight).all(), name
    return DecoderTextEncoder(module, TOKENIZER, reading=READINGS[reading])


def edits(prompt: str) -> Candidates:
    slots = list(range(2 * len(prompt) + 1)) * 2
    return Candidates.edits(prompt, slots, ["q"] * (len(slots) // 2) + ["Z"] * (len(slots) // 2))


def scores(tower: DecoderTextEncoder, engine: Any, feature: Any, **options: Any) -> list[torch.Tensor]:
    bound = Scorer(tower, Drift("l2", feature=feature), engine=engine, **options).bind(PROMPTS)
    assert isinstance(bound, PrefixScore) == (engine == "prefix")
    return bound([edits(prompt) for prompt in PROMPTS])


CASES = [(model, "template") for model in MODELS] + [
    ("qwen3", reading) for reading in READINGS if reading != "template"
]


@pytest.mark.parametrize(("model", "reading"), CASES)
def test_scores_are_those_of_the_plain_engine(model: str, reading: str) -> None:
    tower = encoder(model, reading)
    for feature in (Readout(8), MeanState()):
        for mine, plain in zip(scores(tower, "prefix", feature), scores(tower, "plain", feature), strict=True):
            assert (mine - plain).abs().max() <= 1e-5 * plain.abs().max()
            assert plain.std() > 0


def test_memory_is_bounded_and_changes_nothing() -> None:
    tower = encoder("qwen3")
    forest = DecoderForest(tower)
    small = scores(tower, "prefix", Readout(8), max_bytes=forest.bytes_per_node * 80)
    for mine, whole in zip(small, scores(tower, "prefix", Readout(8)), strict=True):
        assert (mine - whole).abs().max() <= 1e-5 * whole.abs().max()


def test_the_template_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from leaf_diffusion.scoring import decoder_forest

    computed = list[int]()
    run = decoder_forest._run

    def counted(block: Any, x: torch.Tensor, *rest: Any) -> Any:
        computed.append(len(x))
        return run(block, x, *rest)

    monkeypatch.setattr(decoder_forest, "_run", counted)
    tower = encoder("qwen3", "layers")
    bound = Scorer(tower).bind(["red hat"])
    bound([edits("red hat")])
    first = sum(computed)
    bound([edits("red hat")])
    assert 0 < sum(computed) - first < first


def test_an_attack_finds_the_same() -> None:
    tower = encoder("qwen3")
    found = [
        Charmer(n_positions=3)(PROMPTS[:2], Scorer(tower, engine=engine), k=2, constraint=None)
        for engine in ("prefix", "plain")
    ]
    for mine, plain in zip(*found, strict=True):
        assert mine.perturbed == plain.perturbed
        assert mine.score == pytest.approx(plain.score, rel=1e-5)


def test_what_is_not_known_is_scored_plainly_with_a_reason() -> None:
    tower = encoder("llama")
    layer: Any = tower.tower.layers[0]
    layer.mlp.act_fn = nn.ReLU()
    with pytest.raises(UnsupportedTowerError, match="activation is ReLU"):
        DecoderForest(tower)
    with pytest.warns(UserWarning, match="scored plainly"):
        Scorer(tower).bind(["a"])
    with pytest.raises(UnsupportedTowerError, match="windows"):
        DecoderForest(encoder("gemma2", "padded"))
    dynamic = encoder("qwen2")
    dynamic.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(UnsupportedTowerError, match='"dynamic"'):
        DecoderForest(dynamic)


def test_lower_precision_screens_and_full_precision_decides() -> None:
    tower = encoder("qwen3")
    for mine, plain in zip(
        scores(tower, "prefix", Readout(8), precision="screen"), scores(tower, "plain", Readout(8)), strict=True
    ):
        assert float(mine.max()) == pytest.approx(float(plain.max()), rel=1e-5)
