"""What diffusers asks of every pipeline in its own fast tests, for each Leaf pipeline: and bit by bit as the stock twin."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForText2Image,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
)
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, IPAdapterTimeImageProjection
from PIL import Image
from transformers import PreTrainedModel

from leaf_diffusion.encoders import clip_tokenizer

if TYPE_CHECKING:
    from tests.pipelines.conftest import Kind

PROMPTS = ["a red umbrella", "a blue cat on a very old and quiet bench", ""]


@dataclass(frozen=True)
class Pair:
    """A Leaf pipeline and its stock twin around the same components."""

    leaf: DiffusionPipeline
    stock: DiffusionPipeline
    parts: dict[str, object]


@pytest.fixture(scope="module")
def pair(kind: Kind) -> Pair:
    """The Leaf pipeline and its stock twin around the same components, which no test changes."""
    parts = kind.parts()
    return Pair(leaf=kind.leaf(**parts), stock=kind.stock(**parts), parts=parts)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"negative_prompt": "a dog"},
        {"guidance_scale": 1.0},
        {"num_images_per_prompt": 2},
        {"prompt_2": "a cat", "negative_prompt_2": "a dog"},
        {"output_type": "latent"},
        {"clip_skip": 1},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_bitwise_the_stock_image(kind: Kind, pair: Pair, options: dict[str, object]) -> None:
    if kind.name == "sd" and options.keys() & {"prompt_2", "clip_skip"}:
        pytest.skip("SD has one prompt; the stock SD's clip_skip fails, see below")
    ours, theirs = kind.image(pair.leaf, **options), kind.image(pair.stock, **options)
    assert np.array_equal(ours, theirs)
    assert len(ours) == options.get("num_images_per_prompt", 1)
    if options and "num_images_per_prompt" not in options:  # each of them matters
        plain = kind.image(pair.leaf)
        assert ours.shape != plain.shape or not np.array_equal(ours, plain)


def test_clip_skip_of_stable_diffusion(kinds: dict[str, Kind]) -> None:
    kind = kinds["sd"]
    parts = kind.parts()
    leaf, stock = kind.leaf(**parts), kind.stock(**parts)
    encoder = parts["text_encoder"]
    assert isinstance(encoder, torch.nn.Module)
    shared = {"device": torch.device("cpu"), "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    found, _ = leaf.encode_prompt(PROMPTS[0], **shared, clip_skip=1)
    rows = clip_tokenizer()(PROMPTS[0], padding="max_length", return_tensors="pt").input_ids
    states = encoder(rows, output_hidden_states=True).hidden_states
    assert torch.equal(found, getattr(encoder, "text_model", encoder).final_layer_norm(states[-2]))
    if not hasattr(encoder, "text_model"):  # flat since transformers 5.6, which the stock class does not know
        with pytest.raises(AttributeError, match="text_model"):
            kind.image(stock, clip_skip=1)
    assert not np.array_equal(kind.image(leaf, clip_skip=1), kind.image(leaf))


def test_a_batch_is_its_single_images(kind: Kind, pair: Pair) -> None:
    together = kind.image(pair.leaf, PROMPTS, generator=generators(3), negative_prompt=["x", "", "y"])
    assert np.array_equal(
        together, kind.image(pair.stock, PROMPTS, generator=generators(3), negative_prompt=["x", "", "y"])
    )
    for index, (prompt, negative) in enumerate(zip(PROMPTS, ["x", "", "y"], strict=True)):
        alone = kind.image(pair.leaf, prompt, generator=generators(3)[index], negative_prompt=negative)
        np.testing.assert_allclose(alone[0], together[index], atol=1e-4)


@pytest.mark.parametrize(("batch", "per_prompt"), [(1, 2), (2, 1), (2, 2)])
def test_images_per_prompt(kind: Kind, pair: Pair, batch: int, per_prompt: int) -> None:
    options: dict[str, object] = {"num_images_per_prompt": per_prompt, "generator": generators(batch * per_prompt)}
    ours = kind.image(pair.leaf, PROMPTS[:batch], **options)
    assert len(ours) == batch * per_prompt
    options["generator"] = generators(batch * per_prompt)
    assert np.array_equal(ours, kind.image(pair.stock, PROMPTS[:batch], **options))


def test_prompt_embeddings(kind: Kind, pair: Pair) -> None:
    names = {
        "sd": ("prompt_embeds", "negative_prompt_embeds"),
        "xl": (
            "prompt_embeds",
            "negative_prompt_embeds",
            "pooled_prompt_embeds",
            "negative_pooled_prompt_embeds",
        ),
    }
    names["sd3"] = names["xl"]
    asked = {"prompt_2": None} if kind.name != "sd" else {}
    asked |= {"prompt_3": None} if kind.name == "sd3" else {}
    shared = {"device": torch.device("cpu"), "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    ours, theirs = (
        pipe.encode_prompt(PROMPTS[0], negative_prompt="a dog", **shared, **asked) for pipe in (pair.leaf, pair.stock)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    embeds = dict(zip(names[kind.name], ours, strict=True))
    assert np.array_equal(
        kind.image(pair.leaf, None, **embeds), kind.image(pair.leaf, PROMPTS[0], negative_prompt="a dog")
    )


def test_guidance(kind: Kind, pair: Pair) -> None:
    seen = []

    def look(
        pipe: DiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        seen.append(pipe.do_classifier_free_guidance)
        return {}

    images = [
        kind.image(pair.leaf, guidance_scale=scale, callback_on_step_end=look, callback_on_step_end_tensor_inputs=[])
        for scale in (1.0, 6.0)
    ]
    assert seen == [False, False, True, True]
    assert not np.array_equal(images[0], images[1])


def test_callbacks_see_and_change_what_they_ask_for(kind: Kind, pair: Pair) -> None:
    inputs = pair.stock._callback_tensor_inputs
    assert pair.leaf._callback_tensor_inputs == inputs
    steps = []

    def look(
        pipe: DiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        assert set(tensors) == set(inputs)
        steps.append((step, {name: value.clone() for name, value in tensors.items()}))
        return tensors

    def blank(
        pipe: DiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        return {"latents": torch.zeros_like(tensors["latents"])}

    for pipe in (pair.leaf, pair.stock):
        kind.image(pipe, callback_on_step_end=look, callback_on_step_end_tensor_inputs=inputs)
    assert [step for step, _ in steps] == [0, 1, 0, 1]
    for (_, ours), (_, theirs) in zip(steps[:2], steps[2:], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in inputs)
    asked: dict[str, object] = {"callback_on_step_end": blank, "callback_on_step_end_tensor_inputs": ["latents"]}
    assert np.array_equal(kind.image(pair.leaf, **asked), kind.image(pair.stock, **asked))
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
        kind.image(pair.leaf, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["no_such_tensor"])


def test_optional_components(kind: Kind, pair: Pair, tmp_path: Path) -> None:
    optional = [name for name in pair.stock._optional_components if not name.startswith(("text_", "tokenizer"))]
    assert pair.leaf._optional_components == pair.stock._optional_components
    pipe = kind.leaf(**pair.parts | dict.fromkeys(optional))
    before = kind.image(pipe)
    pipe.save_pretrained(tmp_path)
    again = kind.leaf.from_pretrained(tmp_path, **kind.load)
    assert optional and all(getattr(again, name) is None for name in optional)
    assert np.array_equal(kind.image(again), before)


def test_float16_is_saved_and_loaded(kind: Kind, tmp_path: Path) -> None:
    pipe = kind.leaf(**kind.parts()).to(dtype=torch.float16)
    pipe.save_pretrained(tmp_path)
    again = kind.leaf.from_pretrained(tmp_path, dtype=torch.float16, **kind.load)
    parts = [part for part in again.components.values() if isinstance(part, torch.nn.Module)]
    assert {part.dtype for part in parts} == {torch.float16}
    assert np.array_equal(kind.image(again), kind.image(pipe))


def test_from_pipe_both_ways(kind: Kind, pair: Pair) -> None:
    expected = kind.image(pair.stock)
    leaf = kind.leaf.from_pipe(pair.stock)
    stock = kind.stock.from_pipe(pair.leaf)
    assert (type(leaf), type(stock)) == (kind.leaf, kind.stock)
    for pipe in (leaf, stock, kind.leaf(**pair.leaf.components)):
        assert all(pipe.components[name] is part for name, part in pair.leaf.components.items())
        assert np.array_equal(kind.image(pipe), expected)
    assert pair.leaf.components.keys() == pair.stock.components.keys()


def test_on_to_image_to_image(kinds: dict[str, Kind]) -> None:
    kind = kinds["sd"]
    leaf = kind.leaf(**kind.parts())
    kind.image(leaf)
    ask = {"image": Image.new("RGB", (8, 8), "red"), "num_inference_steps": 2, "output_type": "np"}
    images = []
    for pipe in (
        StableDiffusionImg2ImgPipeline.from_pipe(leaf),
        AutoPipelineForImage2Image.from_pipe(kind.stock.from_pipe(leaf)),
    ):
        pipe.set_progress_bar_config(disable=True)
        images.append(pipe("a cat", generator=torch.Generator().manual_seed(0), **ask).images)
    assert np.array_equal(images[0], images[1])


def test_the_auto_class_takes_the_stock_twin_and_says_that_it_knows_no_other(kind: Kind, pair: Pair) -> None:
    expected = kind.image(pair.stock)
    with pytest.raises(ValueError, match=f"can't find a pipeline linked to {kind.leaf.__name__}"):
        AutoPipelineForText2Image.from_pipe(pair.leaf)
    auto = AutoPipelineForText2Image.from_pipe(kind.stock.from_pipe(pair.leaf))
    assert type(auto) is kind.stock
    assert np.array_equal(kind.image(auto), expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft against transformers 5
def test_lora_weights(kind: Kind, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    parts = kind.parts()
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "q_proj"], init_lora_weights=False)
    layers, plain = {}, kind.image(kind.stock(**parts))
    for name in ("unet", "transformer", *kind.towers):
        if name in parts:
            wrapped = peft.get_peft_model(copy.deepcopy(parts[name]), config)
            layers[f"{name}_lora_layers"] = {
                key.removeprefix("base_model.model."): value
                for key, value in peft.get_peft_model_state_dict(wrapped).items()
            }
    kind.leaf.save_lora_weights(tmp_path, **layers)
    images = []
    for maker in (kind.leaf, kind.stock):
        pipe = maker(**copy.deepcopy(parts))
        pipe.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
        images.append(kind.image(pipe))
        pipe.unload_lora_weights()
        np.testing.assert_allclose(kind.image(pipe), plain, atol=1e-6)
    assert np.array_equal(images[0], images[1])
    assert not np.allclose(images[0], plain, atol=1e-4)


def test_textual_inversion(kind: Kind, new_tower: Callable[..., PreTrainedModel]) -> None:
    if kind.name == "sd3":
        assert not hasattr(kind.stock, "load_textual_inversion")
        return
    images = []
    for maker in (kind.leaf, kind.stock):
        parts = kind.parts() | {"tokenizer": clip_tokenizer()}
        parts |= {"tokenizer_2": clip_tokenizer()} if kind.name == "xl" else {}
        pipe = maker(**parts)
        for part, reader in zip(kind.towers, ("tokenizer", "tokenizer_2"), strict=False):
            torch.manual_seed(1)
            learnt = {"<leaf>": torch.randn(2, kind.module(part).config.hidden_size)}  # a token of two vectors
            asked = {"text_encoder": getattr(pipe, part), "tokenizer": getattr(pipe, reader)}
            pipe.load_textual_inversion(learnt, token="<leaf>", **asked)
        images.append(kind.image(pipe, "a photo of <leaf>"))
        if maker is kind.leaf:
            rows = pipe.encoders[0].tokenize(["<leaf>"])
            assert pipe.encoders[0].features(rows, "pooled").shape == (1, 64)
            with pytest.raises(ValueError, match="largest token id"):
                pipe._exchange({"text_encoder": new_tower(seed=9)}, (None, None), None)
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], kind.image(kind.stock(**kind.parts()), "a photo of <leaf>"))


def test_ip_adapter(kind: Kind) -> None:
    images, plain = [], kind.image(kind.stock(**kind.parts()))
    for maker in (kind.leaf, kind.stock):
        pipe = maker(**kind.parts())
        torch.manual_seed(0)
        if kind.name == "sd3":
            pipe.transformer._load_ip_adapter_weights(sd3_adapter(pipe.transformer))
            embeds = torch.randn(2, 5, 32)
        else:
            pipe.unet._load_ip_adapter_weights([unet_adapter(pipe.unet)])
            embeds = [torch.randn(2, 1, 32)]
        images.append(kind.image(pipe, ip_adapter_image_embeds=embeds))
    assert np.array_equal(images[0], images[1])
    assert not np.allclose(images[0], plain, atol=1e-4)


def unet_adapter(unet: torch.nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    width, attention = unet.config.cross_attention_dim, {}
    places = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(places):
        inner = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
        for letter in "kv":
            attention[f"{2 * number + 1}.to_{letter}_ip.weight"] = torch.randn(inner, width)
    image = ImageProjection(cross_attention_dim=width, image_embed_dim=32, num_image_text_embeds=4).state_dict()
    return {
        "image_proj": {key.replace("image_embeds", "proj"): value for key, value in image.items()},
        "ip_adapter": attention,
    }


def sd3_adapter(transformer: torch.nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    sizes = {"hidden_size": 32, "ip_hidden_states_dim": 32, "head_dim": 8, "timesteps_emb_dim": 32}
    attention = {}
    for index in range(len(transformer.attn_processors)):
        for key, value in SD3IPAdapterJointAttnProcessor2_0(**sizes).state_dict().items():
            attention[f"{index}.{key}"] = torch.randn_like(value)
    image = IPAdapterTimeImageProjection(
        embed_dim=32, output_dim=32, hidden_dim=32, heads=1, num_queries=2, timestep_in_dim=8
    )
    return {"image_proj": image.state_dict(), "ip_adapter": attention}
