"""`harden`: other text encoders for pipelines of any class, checked before they are taken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from transformers import T5Config, T5EncoderModel

import leaf_diffusion
from leaf_diffusion.attacks import Charmer
from leaf_diffusion.diffusion.pipeline_encoder import PipelineEncoder
from leaf_diffusion.encoders.defences import Speller
from tests.pipelines.conftest import KINDS, tower
from tests.pipelines.languages import LANGUAGES

PROMPT = "a red umbrella"


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """The same tower with other weights."""
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


def states(pipe: Any) -> torch.Tensor:
    (found,) = PipelineEncoder(pipe)([PROMPT])
    return found.states[0]


@pytest.mark.parametrize("name", [each for each in LANGUAGES if each != "sana"])
def test_a_language_model_is_exchanged_saved_and_loaded_by_the_stock_class(name: str, tmp_path: Path) -> None:
    pipe = LANGUAGES[name]()
    before = states(pipe)
    new = moved(LANGUAGES[name]().text_encoder)
    for source in (new, tmp_path / "encoder"):
        if source is not new:
            new.save_pretrained(source)
        hardened = leaf_diffusion.harden(pipe, text_encoder=source)
        assert type(hardened) is type(pipe)
        assert hardened.tokenizer is pipe.tokenizer
        assert not torch.equal(states(hardened), before)
        assert torch.equal(states(pipe), before)
    assert torch.equal(states(hardened), states(leaf_diffusion.harden(pipe, text_encoder=new)))
    hardened.save_pretrained(tmp_path / "pipeline")
    stock = type(pipe).from_pretrained(tmp_path / "pipeline", transformer=None, vae=None)
    assert torch.equal(states(stock), states(hardened))


def test_a_clip_is_exchanged_as_in_the_leaf_pipelines() -> None:
    kind = KINDS["xl"]
    pipe: DiffusionPipeline = kind.stock(**kind.parts())
    new = tower(seed=9)
    hardened = leaf_diffusion.harden(pipe, text_encoder=new)
    (found,), (before,) = PipelineEncoder(hardened)([PROMPT]), PipelineEncoder(pipe)([PROMPT])
    assert not torch.equal(found.states[0], before.states[0])
    assert torch.equal(found.pooled[0], before.pooled[0])  # of the second encoder, which stays
    with pytest.raises(ValueError, match="does not fit the pipeline"):
        leaf_diffusion.harden(pipe, text_encoder_2=new)


def t5(**changes: Any) -> T5EncoderModel:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4, "vocab_size": 60}
    return T5EncoderModel(T5Config(**{**sizes, **changes})).eval()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: t5(num_layers=3), "num_layers: 2 here, 3 there"),
        (lambda: t5(relative_attention_max_distance=64), "relative_attention_max_distance: 128 here, 64 there"),
        (lambda: tower(), "does not fit the pipeline"),
        (lambda: t5(dropout_rate=0.5), None),
    ],
)
def test_every_misfit_is_named(make: Callable[[], torch.nn.Module], said: str | None, tmp_path: Path) -> None:
    pipe, new = LANGUAGES["pixart"](), make()
    new.save_pretrained(tmp_path / "new")
    for source in (new, tmp_path / "new"):
        if said is None:
            leaf_diffusion.harden(pipe, text_encoder=source)
        else:
            with pytest.raises(ValueError, match=said):
                leaf_diffusion.harden(pipe, text_encoder=source)


def test_weights_that_are_no_numbers_and_parts_that_are_not_there_are_refused() -> None:
    pipe = LANGUAGES["pixart"]()
    broken = t5()
    broken.shared.weight.data[3, 3] = float("nan")
    with pytest.raises(ValueError, match="text_encoder"):
        leaf_diffusion.harden(pipe, text_encoder=broken)
    for name in ("text_encoder_2", "tokenizer", "scheduler"):
        with pytest.raises(ValueError, match=f"has no text encoder '{name}'; it has: text_encoder"):
            leaf_diffusion.harden(pipe, **{name: broken})


def test_a_defence_reads_prompts_first_and_an_attack_goes_through_it() -> None:
    pipe = LANGUAGES["z-image"]()
    speller = Speller(["a", "red", "umbrella"])
    hardened = leaf_diffusion.harden(pipe, defence=speller)
    plain, behind = PipelineEncoder(pipe), PipelineEncoder(hardened)
    (clean,), (undone,), (raw,) = plain([PROMPT]), behind(["a red umbrlla"]), plain(["a red umbrlla"])
    assert torch.equal(clean.states[0], undone.states[0])
    assert not torch.equal(clean.states[0], raw.states[0][: len(clean.states[0])])
    assert torch.equal(
        hardened.encode_prompt(prompt=["a red umbrlla"])[0][0], pipe.encode_prompt(prompt=[PROMPT])[0][0]
    )
    assert plain.fingerprint != behind.fingerprint
    assert behind.preprocess(["a red umbrlla"]) == [PROMPT]
    attack = Charmer(n_positions=1, alphabet="xz")
    scores = [
        leaf_diffusion.attack(each, [PROMPT], attack=attack, constraint=None)[0].score for each in (pipe, hardened)
    ]
    assert scores[1] < scores[0]


def test_a_defence_stays_with_a_second_exchange_and_reads_once() -> None:
    calls = list[list[str]]()

    class Counting(Speller):
        def __call__(self, texts: Any) -> list[str]:
            calls.append(list(texts))
            return super().__call__(texts)

    speller = Counting(["a", "red", "umbrella"])
    again = leaf_diffusion.harden(leaf_diffusion.harden(LANGUAGES["z-image"](), defence=speller), text_encoder=moved(
        LANGUAGES["z-image"]().text_encoder))  # fmt: skip
    kind = KINDS["sd"]
    leaf = leaf_diffusion.harden(kind.leaf.from_pipe(kind.stock(**kind.parts())), defence=speller)
    for pipe in (again, leaf):
        calls.clear()
        PipelineEncoder(pipe)(["a red umbrlla"])
        assert calls == [["a red umbrlla"]]
