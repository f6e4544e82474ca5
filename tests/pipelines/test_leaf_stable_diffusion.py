"""What is Stable Diffusion's own, with tiny seeded components: swaps, the defence, attacks; see also test_conventions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from transformers import CLIPTextModel

from leaf_diffusion.attacks.charmer import Charmer
from leaf_diffusion.encoders import Hidden, clip_tokenizer, load_text_encoder
from leaf_diffusion.pipelines import LeafStableDiffusionPipeline
from leaf_diffusion.scoring import Drift
from tests import tiny

PROMPT = "a red umbrella"


@pytest.fixture(scope="module")
def parts() -> dict[str, object]:
    return {
        "unet": tiny.unet(),
        "vae": tiny.vae(),
        "scheduler": DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        "text_encoder": tiny.tower(CLIPTextModel),
        "tokenizer": clip_tokenizer(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


@pytest.fixture(scope="module")
def stock_folder(parts: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    StableDiffusionPipeline(**parts).save_pretrained(folder)
    return folder


def image(pipe: DiffusionPipeline, prompt: str | None = PROMPT, **options: object) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=2, generator=generator, output_type="np", **options).images


@pytest.mark.parametrize("given", ["folder", "module", "encoder"])
def test_swapping_a_text_encoder(stock_folder: Path, parts: dict[str, object], tmp_path: Path, given: str) -> None:
    new = tiny.tower(seed=1)
    new.save_pretrained(tmp_path / "robust")
    source = {
        "folder": str(tmp_path / "robust"),
        "module": new,
        "encoder": load_text_encoder(new, tokenizer=clip_tokenizer()),
    }[given]
    leaf = LeafStableDiffusionPipeline.from_pretrained(stock_folder, text_encoder=source)
    assert type(leaf.text_encoder) is CLIPTextModel
    expected = image(StableDiffusionPipeline(**{**parts, "text_encoder": new.text_model}))
    assert np.array_equal(image(leaf), expected)
    assert not np.array_equal(expected, image(StableDiffusionPipeline(**parts)))
    assert leaf.encoder.has_projection
    rows = leaf.encoder.tokenize([PROMPT])
    torch.testing.assert_close(leaf.encoder.features(rows), new(torch.tensor(rows)).text_embeds)
    leaf.save_pretrained(tmp_path / "saved")  # a stock pipeline around the robust encoder, the projection left out
    assert np.array_equal(image(StableDiffusionPipeline.from_pretrained(tmp_path / "saved")), expected)


def test_misfits_are_found_on_loading(stock_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"does not fit the pipeline: width"):
        LeafStableDiffusionPipeline.from_pretrained(stock_folder, text_encoder=tiny.tower(hidden_size=24))


def test_pickles_are_never_opened(stock_folder: Path) -> None:
    with pytest.raises(ValueError, match="only safetensors"):
        LeafStableDiffusionPipeline.from_pretrained(stock_folder, use_safetensors=False)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft against transformers 5
def test_adapter_on_the_pipelines_own_encoder(stock_folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    lora = peft.get_peft_model(tiny.tower(CLIPTextModel), settings)
    lora.save_pretrained(tmp_path)
    leaf = LeafStableDiffusionPipeline.from_pretrained(stock_folder, adapter=tmp_path)
    rows = torch.tensor(leaf.encoder.tokenize([PROMPT]))
    torch.testing.assert_close(leaf.text_encoder(rows).last_hidden_state, lora.eval()(input_ids=rows).last_hidden_state)


def test_the_defence_reads_prompts_only(stock_folder: Path) -> None:
    class Swap:
        name = fingerprint = "swap"

        def __call__(self, texts: Sequence[str]) -> list[str]:
            return [text.replace("umbrlla", "umbrella") for text in texts]

    plain = LeafStableDiffusionPipeline.from_pretrained(stock_folder)
    defended = LeafStableDiffusionPipeline.from_pretrained(stock_folder, defence=Swap())
    assert np.array_equal(image(defended, "a red umbrlla"), image(plain))
    assert not np.array_equal(image(plain, "a red umbrlla"), image(plain))
    assert np.array_equal(image(defended, negative_prompt="umbrlla"), image(plain, negative_prompt="umbrlla"))
    named = LeafStableDiffusionPipeline.from_pretrained(stock_folder, defence="speller")
    assert named.encoder.preprocess(["a red umbrela"]) == [PROMPT]


def test_from_pipe_shares_components(stock_folder: Path) -> None:
    new = tiny.tower(seed=1)
    stock = StableDiffusionPipeline.from_pretrained(stock_folder)
    leaf = LeafStableDiffusionPipeline.from_pipe(stock)
    assert leaf.unet is stock.unet
    assert np.array_equal(image(leaf), image(stock))
    robust = LeafStableDiffusionPipeline.from_pipe(leaf, text_encoder=new)
    assert robust.unet is stock.unet
    assert leaf.text_encoder is stock.text_encoder
    again = LeafStableDiffusionPipeline.from_pipe(robust)
    assert again.encoder.has_projection
    assert np.array_equal(image(again), image(robust))
    assert np.array_equal(image(StableDiffusionPipeline.from_pipe(robust)), image(robust))


def test_attack_on_the_pipelines_own_encoder(stock_folder: Path) -> None:
    attack = Charmer(n_positions=3)
    leaf = LeafStableDiffusionPipeline.from_pretrained(stock_folder)
    assert not leaf.encoder.has_projection  # so the default looks at pooled features
    steps = []
    result = leaf.attack([PROMPT], attack=attack, on_step=lambda done, total: steps.append((done, total)))[0]
    assert result.distance == 1
    assert result.score > 0
    assert steps
    rows = leaf.encoder.tokenize([PROMPT, result.perturbed])
    clean, attacked = leaf.encoder.features(rows, "pooled").detach()
    assert result.score == pytest.approx(float((clean - attacked).square().sum()), rel=1e-4)
    projected = tiny.tower(seed=1)
    robust = LeafStableDiffusionPipeline.from_pretrained(stock_folder, text_encoder=projected)
    bare = LeafStableDiffusionPipeline.from_pretrained(stock_folder, text_encoder=projected.text_model)
    found, same = (pipe.attack([PROMPT], attack=attack, constraint=None)[0] for pipe in (robust, bare))
    assert found == same  # the same weights get the same attack, whatever projection came along
    asked = robust.attack([PROMPT], attack=attack, constraint=None, objective=Drift("l2"))[0]
    clean = projected(torch.tensor(robust.encoder.tokenize([PROMPT]))).text_embeds
    attacked = robust.encoder.features([asked.token_ids])
    assert asked.score == pytest.approx(float((clean - attacked).square().sum()), rel=1e-3)
    assert robust.attack([PROMPT], attack=attack, objective=Drift("l2", feature=Hidden()))[0].score > 0
