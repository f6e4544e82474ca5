"""What a pipeline carries beside its weights travels with a swap, an attack, an export and a save, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPTextModel, PreTrainedModel

from leaf_diffusion.attacks import Charmer
from leaf_diffusion.encoders import clip_tokenizer, load_text_encoder
from leaf_diffusion.encoders.export import export_text_encoder
from leaf_diffusion.pipelines import LeafStableDiffusionPipeline

if TYPE_CHECKING:
    from tests.pipelines.conftest import Kind

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft, transformers 5


@pytest.fixture
def with_lora(kinds: dict[str, Kind], tmp_path: Path) -> LeafStableDiffusionPipeline:
    """A pipeline after `load_lora_weights` of a LoRA on the UNet and on the text encoder."""
    peft = pytest.importorskip("peft")
    parts = kinds["sd"].parts()
    config = peft.LoraConfig(r=2, target_modules=["to_q", "q_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    layers = {}
    for name in ("unet", "text_encoder"):
        wrapped = peft.get_peft_model(kinds["sd"].module(name), config)
        state = peft.get_peft_model_state_dict(wrapped).items()
        layers[f"{name}_lora_layers"] = {key.removeprefix("base_model.model."): value for key, value in state}
    LeafStableDiffusionPipeline.save_lora_weights(tmp_path / "lora", **layers)
    pipe = LeafStableDiffusionPipeline(**parts)
    pipe.load_lora_weights(tmp_path / "lora", weight_name="pytorch_lora_weights.safetensors")
    return pipe


def test_a_swap_does_not_leave_a_lora_behind(
    with_lora: LeafStableDiffusionPipeline, new_tower: Callable[..., PreTrainedModel]
) -> None:
    with pytest.raises(ValueError, match="carries a LoRA, which would stay behind: call unload_lora_weights"):
        LeafStableDiffusionPipeline.from_pipe(with_lora, text_encoder=new_tower(CLIPTextModel, seed=7))
    assert LeafStableDiffusionPipeline.from_pipe(with_lora).text_encoder is with_lora.text_encoder
    with_lora.unload_lora_weights()
    LeafStableDiffusionPipeline.from_pipe(with_lora, text_encoder=new_tower(CLIPTextModel, seed=7))


def test_what_is_saved_draws_what_was_drawn(
    with_lora: LeafStableDiffusionPipeline, kinds: dict[str, Kind], tmp_path: Path
) -> None:
    kind = kinds["sd"]
    expected, plain = kind.image(with_lora), kind.image(kind.leaf(**kind.parts()))
    with_lora.save_pretrained(tmp_path / "saved")
    again = kind.stock.from_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(kind.image(again), expected, atol=1e-4)
    assert np.abs(expected - plain).max() > 1e-2
    with_lora.unload_lora_weights()  # the pipeline itself still carries it
    np.testing.assert_allclose(kind.image(with_lora), plain, atol=1e-6)


def test_an_export_has_the_lora_in_its_weights(with_lora: LeafStableDiffusionPipeline, tmp_path: Path) -> None:
    (encoder,) = with_lora.encoders
    file = tmp_path / "text.safetensors"
    export_text_encoder(encoder, file, dtype=torch.float32)
    assert not [key for key in load_file(file) if "base_layer" in key or "lora" in key]
    rows = encoder.tokenize(["a red umbrella"])
    read = load_text_encoder(file).features(rows, "pooled")
    torch.testing.assert_close(read, encoder.features(rows, "pooled").detach())


def test_an_attack_reads_all_vectors_of_a_learnt_token(kinds: dict[str, Kind]) -> None:
    pipe: DiffusionPipeline = LeafStableDiffusionPipeline(**kinds["sd"].parts() | {"tokenizer": clip_tokenizer()})
    torch.manual_seed(1)
    pipe.load_textual_inversion({"<rug>": torch.randn(3, 64)}, token="<rug>")
    (encoder,) = pipe.encoders
    texts = ["a photo of <rug>", "<rug>, a <rug>s", "a <rag> <ru g>", "a <rug>_1"]
    drawn = [pipe.tokenizer(pipe.maybe_convert_prompt(text, pipe.tokenizer)).input_ids for text in texts]
    assert encoder.tokenize(texts) == drawn
    (found,) = pipe.attack(texts[:1], attack=Charmer(n_positions=40), constraint=None)
    states = [pipe.encode_prompt(text, "cpu", 1, False)[0] for text in (texts[0], found.perturbed)]
    ends = [len(row) - 1 for row in encoder.tokenize([texts[0], found.perturbed])]
    moved = states[1][0, ends[1]] - states[0][0, ends[0]]
    assert found.score == pytest.approx(float(moved.square().sum()), rel=1e-3)
    assert found.objective == "drift(l2, pooled)"


def test_text_encoders_are_done_without(kind: Kind, folders: Callable[[Kind], Path]) -> None:
    none = dict.fromkeys(kind.towers)
    assert kind.leaf.from_pretrained(folders(kind), **kind.load | none).text_encoder is None
    pipe = kind.leaf.from_pipe(kind.leaf(**kind.parts()), **none)
    assert pipe.encoders == []
    with pytest.raises(ValueError, match="has no text encoder that could be attacked"):
        pipe.attack(["a red umbrella"])


def test_the_feature_is_the_classs_own_and_stands_in_the_result(kind: Kind) -> None:
    pipe = kind.leaf(**kind.parts())
    whole = kind.leaf.from_pipe(pipe, **{kind.towers[0]: kind.new_tower(kind.towers[0])})
    names = {"sd": "pooled", "xl": "pooled projected", "sd3": "projected projected"}[kind.name].split()
    expected = [f"drift(l2, {name})" for name in names]
    for each in (pipe, whole):
        (result,) = each.attack(["a cat"], attack=Charmer(n_positions=2))
        assert result.objective == (expected[0] if len(names) == 1 else f"mean({', '.join(expected)})")


def test_components_replace_parts_by_name(
    kinds: dict[str, Kind], folders: Callable[[Kind], Path], new_tower: Callable[..., PreTrainedModel]
) -> None:
    kind = kinds["xl"]
    given = {"text_encoder": new_tower(CLIPTextModel, seed=9), "unet": kind.parts()["unet"]}
    pipe = kind.leaf.from_pretrained(folders(kind), components=given, **kind.load)
    assert pipe.unet is given["unet"] and pipe.text_encoder is given["text_encoder"]
