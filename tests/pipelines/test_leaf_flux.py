"""FLUX with tiny seeded components: CLIP is exchanged, defended and attacked, T5 stays what it was."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, PreTrainedModel, T5Config, T5EncoderModel, T5TokenizerFast

from leaf_diffusion.attacks import Charmer
from leaf_diffusion.encoders import Hidden, clip_tokenizer, load_text_encoder
from leaf_diffusion.encoders.defences import Speller
from leaf_diffusion.pipelines import LeafFluxPipeline, LeafStableDiffusionPipeline
from leaf_diffusion.scoring.objectives import Drift
from tests import tiny

PROMPT = "a red umbrella"


def t5(seed: int = 0) -> T5EncoderModel:
    torch.manual_seed(seed)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    return T5EncoderModel(T5Config(vocab_size=60, **sizes)).eval()


def t5_tokenizer() -> T5TokenizerFast:
    letters = [(f"{start}{letter}", -3.0) for letter in "abcdefghijklmnopqrstuvwxyz" for start in ("", "▁")]
    return T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters], extra_ids=0)


@pytest.fixture(scope="module")
def parts(new_tower: Callable[..., PreTrainedModel]) -> dict[str, object]:
    return flux_parts(new_tower)


def flux_parts(new_tower: Callable[..., PreTrainedModel]) -> dict[str, object]:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=64, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    vae = tiny.vae(latent_channels=1, **tiny.NEWER_VAE)
    return {
        "transformer": transformer.eval(), "vae": vae, "scheduler": FlowMatchEulerDiscreteScheduler(),
        "text_encoder": new_tower(CLIPTextModel), "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5(), "tokenizer_2": t5_tokenizer(), "image_encoder": None, "feature_extractor": None,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(parts: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux")
    FluxPipeline(**parts).save_pretrained(folder)
    return folder


def image(pipe: DiffusionPipeline, prompt: str | None = PROMPT, /, **options: object) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():  # matrix products round by how their memory is aligned
        for weight in part.parameters() if isinstance(part, torch.nn.Module) else ():
            if weight.data_ptr() % 64:
                weight.data = weight.data.clone()
    generator = torch.Generator().manual_seed(0)
    asked = {"height": 8, "width": 8, "num_inference_steps": 2, "max_sequence_length": 48, "output_type": "np"}
    return pipe(prompt, generator=generator, **asked | options).images


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt_2": "a cat"},
        {"num_images_per_prompt": 2},
        {"negative_prompt": "a dog", "true_cfg_scale": 3.0},
        {"output_type": "latent"},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_bitwise_the_stock_image(parts: dict[str, object], options: dict[str, object]) -> None:
    ours, theirs = (image(maker(**parts), **options) for maker in (LeafFluxPipeline, FluxPipeline))
    assert np.array_equal(ours, theirs)
    assert len(ours) == options.get("num_images_per_prompt", 1)
    if options and "num_images_per_prompt" not in options:
        plain = image(LeafFluxPipeline(**parts))
        assert ours.shape != plain.shape or not np.array_equal(ours, plain)


def test_round_trips(parts: dict[str, object], folder: Path, tmp_path: Path) -> None:
    expected = image(FluxPipeline(**parts))
    leaf = LeafFluxPipeline.from_pretrained(folder)
    assert np.array_equal(image(leaf), expected)
    leaf.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "FluxPipeline"
    for back in (FluxPipeline.from_pretrained(tmp_path), DiffusionPipeline.from_pretrained(tmp_path)):
        assert type(back) is FluxPipeline
        assert np.array_equal(image(back), expected)
    assert np.array_equal(image(LeafFluxPipeline.from_pipe(FluxPipeline(**parts))), expected)
    assert type(FluxPipeline.from_pipe(leaf)) is FluxPipeline
    with pytest.raises(ValueError, match="use LeafFluxPipeline"):
        LeafStableDiffusionPipeline.from_pretrained(folder)


def test_clip_is_swapped_and_t5_is_not(
    parts: dict[str, object], folder: Path, new_tower: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    robust = new_tower(CLIPTextModel, seed=7)
    robust.save_pretrained(tmp_path / "robust")
    clip_tokenizer().save_pretrained(tmp_path / "robust")
    swapped = LeafFluxPipeline.from_pretrained(folder, text_encoder=str(tmp_path / "robust"))
    expected = FluxPipeline(**parts | {"text_encoder": robust})
    assert np.array_equal(image(swapped), image(expected))
    assert not np.array_equal(image(swapped), image(FluxPipeline(**parts)))
    stock = FluxPipeline(**parts)
    other = LeafFluxPipeline.from_pipe(stock, text_encoder=load_text_encoder(robust, tokenizer=clip_tokenizer()))
    assert other.text_encoder_2 is stock.text_encoder_2
    assert stock.text_encoder is parts["text_encoder"]
    with pytest.raises(ValueError, match="does not fit the pipeline"):
        LeafFluxPipeline.from_pipe(stock, text_encoder=new_tower(CLIPTextModel, hidden_size=128))


def test_t5_is_given_as_to_the_stock_class(parts: dict[str, object], folder: Path) -> None:
    second = t5(seed=5)
    given = LeafFluxPipeline.from_pretrained(folder, text_encoder_2=second)
    assert given.text_encoder_2 is second
    assert np.array_equal(image(given), image(FluxPipeline(**parts | {"text_encoder_2": second})))
    without = LeafFluxPipeline.from_pretrained(folder, text_encoder_2=None, tokenizer_2=None)
    assert without.text_encoder_2 is None
    assert len(without.attack([PROMPT], attack=Charmer(n_positions=2))) == 1
    embeds = dict(
        zip(("prompt_embeds", "pooled_prompt_embeds"), FluxPipeline(**parts).encode_prompt(PROMPT), strict=False)
    )
    assert np.array_equal(image(without, None, **embeds), image(LeafFluxPipeline(**parts), None, **embeds))
    assert LeafFluxPipeline.from_pipe(given, text_encoder_2=parts["text_encoder_2"]).text_encoder_2 is not second


def test_the_attack_moves_the_pooled_state_that_the_denoiser_is_given(
    parts: dict[str, object], new_tower: Callable[..., PreTrainedModel]
) -> None:
    projected = load_text_encoder(new_tower(seed=3), tokenizer=clip_tokenizer())
    assert projected.has_projection
    pipe = LeafFluxPipeline.from_pipe(FluxPipeline(**parts), text_encoder=projected)
    (found,) = pipe.attack([PROMPT], attack=Charmer(n_positions=6))
    before, after = (pipe.encode_prompt(text, max_sequence_length=48)[1] for text in (PROMPT, found.perturbed))
    assert found.distance == 1
    assert found.score == pytest.approx(float((after - before).square().sum()), rel=1e-4)
    assert found.score > 0
    (other,) = pipe.attack([PROMPT], attack=Charmer(n_positions=6), objective=Drift("l2", feature=Hidden()))
    assert other.score != pytest.approx(found.score)


def test_the_defence_stands_before_both_encoders(parts: dict[str, object]) -> None:
    pipe = LeafFluxPipeline.from_pipe(FluxPipeline(**parts), defence=Speller(["a", "red", "umbrella"]))
    assert np.array_equal(image(pipe, "a red umbrlla"), image(FluxPipeline(**parts)))
    assert np.array_equal(image(pipe, "a red umbrlla", prompt_2="a rid umbrella"), image(FluxPipeline(**parts)))
    assert not np.array_equal(image(FluxPipeline(**parts), "a red umbrlla"), image(FluxPipeline(**parts)))
