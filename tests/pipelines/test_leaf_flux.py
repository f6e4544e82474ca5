"""FLUX with tiny seeded components: CLIP and T5 are exchanged, defended and attacked, together or one alone."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, PreTrainedModel, T5Config, T5EncoderModel, T5TokenizerFast

from leaf_diffusion.attacks import Charmer, LeafAttack
from leaf_diffusion.diffusion.pipeline import OWN
from leaf_diffusion.diffusion.pipeline_encoder import PipelineEncoder
from leaf_diffusion.diffusion.pipeline_scorer import PipelineScorer
from leaf_diffusion.encoders import Hidden, clip_tokenizer, load_text_encoder
from leaf_diffusion.encoders.bidirectional import BidirectionalTextEncoder
from leaf_diffusion.encoders.defences import Speller
from leaf_diffusion.pipelines import LeafFluxPipeline, LeafStableDiffusionPipeline
from leaf_diffusion.scoring.objectives import Drift, Margin
from leaf_diffusion.text import Candidates
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


def test_t5_is_exchanged(parts: dict[str, object], folder: Path, tmp_path: Path) -> None:
    second = t5(seed=5)
    expected = image(FluxPipeline(**parts | {"text_encoder_2": second}))
    given = LeafFluxPipeline.from_pretrained(folder, text_encoder_2=second)
    assert given.text_encoder_2 is second
    second.save_pretrained(tmp_path / "t5")
    named = LeafFluxPipeline.from_pipe(FluxPipeline(**parts), text_encoder_2=tmp_path / "t5")
    tower = LeafFluxPipeline.from_pipe(FluxPipeline(**parts), text_encoder_2=given.encoders[1])
    for pipe in (given, named, tower):
        assert np.array_equal(image(pipe), expected)
        assert pipe.text_encoder is parts["text_encoder"] or pipe is given
    assert named.encoders[1].name == str(tmp_path / "t5")
    assert isinstance(named.encoders[1], BidirectionalTextEncoder)
    named.save_pretrained(tmp_path / "saved")
    assert np.array_equal(image(FluxPipeline.from_pretrained(tmp_path / "saved", tokenizer=clip_tokenizer())), expected)
    wider = T5EncoderModel(T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4))
    with pytest.raises(
        ValueError, match="text_encoder_2: the text encoder does not fit the pipeline: d_ff: 37 here, 40"
    ):
        LeafFluxPipeline.from_pipe(given, text_encoder_2=wider)
    with pytest.raises(ValueError, match="no text_encoder_3 that could be exchanged"):
        LeafFluxPipeline.from_pipe(given, text_encoder_3=second)


def test_without_t5_and_with_one_again(parts: dict[str, object], folder: Path) -> None:
    quick = {"tokenizer": clip_tokenizer()}
    without = LeafFluxPipeline.from_pretrained(folder, text_encoder_2=None, tokenizer_2=None, **quick)
    assert without.text_encoder_2 is None
    assert len(without.encoders) == 1
    assert len(without.attack([PROMPT], attack=Charmer(n_positions=2))) == 1
    embeds = dict(
        zip(("prompt_embeds", "pooled_prompt_embeds"), FluxPipeline(**parts).encode_prompt(PROMPT), strict=False)
    )
    assert np.array_equal(image(without, None, **embeds), image(LeafFluxPipeline(**parts), None, **embeds))
    again = LeafFluxPipeline.from_pipe(without, text_encoder_2=parts["text_encoder_2"], tokenizer_2=t5_tokenizer())
    assert np.array_equal(image(again), image(FluxPipeline(**parts)))
    with pytest.raises(ValueError, match="no text_encoder_2 that could be exchanged"):
        LeafFluxPipeline.from_pipe(without, text_encoder_2="folder")


def test_a_quantised_t5_is_given_to_diffusers_as_it_is(parts: dict[str, object]) -> None:
    second = t5(seed=5)
    second.config.quantization_config = {"quant_method": "mine"}
    sources, given = {}, dict[str, object]()
    sources = LeafFluxPipeline._sources((parts["text_encoder"], second, OWN), None, given)
    assert list(sources) == ["text_encoder"]
    assert given == {"text_encoder_2": second}


def test_the_attack_moves_what_the_denoiser_is_given(
    parts: dict[str, object], new_tower: Callable[..., PreTrainedModel]
) -> None:
    projected = load_text_encoder(new_tower(seed=3), tokenizer=clip_tokenizer())
    assert projected.has_projection
    pipe = LeafFluxPipeline.from_pipe(FluxPipeline(**parts), text_encoder=projected)
    attack = Charmer(n_positions=6)
    (found,) = pipe.attack([PROMPT], attack=attack, encoders=["text_encoder"])
    before, after = (pipe.encode_prompt(text, max_sequence_length=48)[1] for text in (PROMPT, found.perturbed))
    assert found.distance == 1
    # the pooled state, unprojected, relative to its own norm as in the mean over both
    assert found.score == pytest.approx(float((after - before).square().sum() / before.square().sum()), rel=1e-4)
    assert found.score > 0
    states = Drift("l2", feature=Hidden())
    (other,) = pipe.attack([PROMPT], attack=attack, objective=states, encoders=["text_encoder"])
    assert other.score != pytest.approx(found.score)


FEW = [Candidates.from_texts(["a red umbrlla", "A red umbrella", "a rxd umbrella"])]


def test_all_encoders_are_attacked_together_as_the_definition_has_it(parts: dict[str, object]) -> None:
    pipe = LeafFluxPipeline(**parts)
    clip, t5_alone, both = (
        pipe.scorer(encoders=names).bind([PROMPT])(FEW)[0] for names in (["text_encoder"], ["text_encoder_2"], None)
    )
    torch.testing.assert_close(both, (clip + t5_alone) / 2)
    (slow,) = PipelineScorer(PipelineEncoder(FluxPipeline(**parts))).bind([PROMPT])(FEW)
    torch.testing.assert_close(both, slow, rtol=1e-4, atol=1e-9)
    assert [type(each).__name__ for each in pipe.encoders] == ["HFTextEncoder", "BidirectionalTextEncoder"]
    (found,) = pipe.attack([PROMPT], attack=LeafAttack(rho=2))
    assert found.distance == 1
    assert found.score > 0


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["text_encoder_3"], "has no text encoder 'text_encoder_3'; it has: text_encoder, text_encoder_2"),
        ("text_encoder", "give names in a list"),
        ([], "give names in a list"),
    ],
)
def test_names_of_no_text_encoder_are_errors(parts: dict[str, object], names: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LeafFluxPipeline(**parts).attack([PROMPT], encoders=names)


def test_an_objective_is_a_clips_and_a_t5_is_asked_for_what_it_has(parts: dict[str, object]) -> None:
    pipe = LeafFluxPipeline(**parts)
    assert pipe.scorer(Drift("l2", feature="pooled")).objective_name == pipe.scorer().objective_name
    named = pipe.scorer(Drift("cosine", feature=Hidden())).objective_name
    assert "Hidden" in named and "drift(cosine, readout of 64 queries)" in named
    for refused in (Margin(torch.eye(64)[:2], [0], feature="pooled"), Drift("l2", pipe.encoders[0], feature="pooled")):
        with pytest.raises(ValueError, match=r"has token states alone: attack the CLIPs by their names"):
            pipe.scorer(refused)
    assert pipe.scorer(refused, encoders=["text_encoder"]).bind([PROMPT])(FEW)[0].shape == (3,)
    with pytest.raises(ValueError, match="tokens of several towers needs one vocabulary"):
        pipe.scorer().bind([PROMPT])([Candidates.from_tokens([[49406, 320, 49407]])])


def test_the_defence_stands_before_both_encoders(parts: dict[str, object]) -> None:
    pipe = LeafFluxPipeline.from_pipe(FluxPipeline(**parts), defence=Speller(["a", "red", "umbrella"]))
    assert np.array_equal(image(pipe, "a red umbrlla"), image(FluxPipeline(**parts)))
    assert np.array_equal(image(pipe, "a red umbrlla", prompt_2="a rid umbrella"), image(FluxPipeline(**parts)))
    assert not np.array_equal(image(FluxPipeline(**parts), "a red umbrlla"), image(FluxPipeline(**parts)))
    guided = {"negative_prompt": "a rxd umbrela", "true_cfg_scale": 3.0}  # which is the user's own
    assert np.array_equal(image(pipe, "a red umbrlla", **guided), image(FluxPipeline(**parts), **guided))
    assert [each.defence for each in pipe.encoders] == [pipe._defence] * 2
