"""The weights that ship: what their cards say is what they do."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.world.build import PARTS
from leaf_diffusion.world.captions import world_prompts
from leaf_diffusion.world.clip import clip_features, clip_figures
from leaf_diffusion.world.figures import generate, image_figures, noise_seed, real_images, zero_shot_anchors
from leaf_diffusion.world.judge import SceneJudge, judge_figures
from leaf_diffusion.world.judge_clip import load_judge_clip
from leaf_diffusion.world.paths import VARIABLE, pipeline_path, weights, weights_root
from leaf_diffusion.world.scenes import COLOURS, NOUNS, Scene, Thing, render, sample_scene
from leaf_diffusion.world.sources import load_clip, seen_tokens


def card(part: str) -> dict[str, float]:
    return json.loads((weights_root() / "cards" / f"{part.replace('/', '-')}.json").read_text())["figures"]


def test_every_part_has_its_card_and_all_of_it_is_small() -> None:
    assert all(card(part) for part in PARTS)
    assert sum(file.stat().st_size for file in weights_root().rglob("*.safetensors")) < 40 * 2**20
    assert not [file for file in weights_root().rglob("*") if file.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


def test_the_scene_judge_is_right_on_real_scenes() -> None:
    figures = judge_figures(SceneJudge.load(), n=400, seed=99)
    assert min(figures.values()) >= 0.97


def test_the_scene_judge_accepts_other_sizes() -> None:
    image = Image.fromarray(render(Scene((Thing("cat", "red"),), "gray"), size=96))
    assert SceneJudge.load().correct([image], [Scene((Thing("cat", "red"),), "gray")]) == [True]
    assert SceneJudge.load().correct([image], [Scene((Thing("cat", "blue"),), "gray")]) == [False]


def test_clip_reaches_the_figures_of_its_card() -> None:
    figures, recorded = clip_figures(clip_features(load_clip())), card("clip")
    assert figures["zero_shot"] >= 0.85
    assert figures["zero_shot"] == pytest.approx(recorded["zero_shot"], abs=0.02)


def test_encoders_are_the_towers_they_claim_to_be() -> None:
    original = load_text_encoder("world:original")
    clip = load_clip()
    texts = ["a red cat", "an umbrela, emoji \N{UMBRELLA}"]
    with torch.inference_mode():
        mine = original.features(original.tokenize(texts))
        theirs = clip_features(clip).texts(texts)
    assert torch.allclose(mine, theirs, atol=1e-5)
    names = ("original", "leaf", "typo-augmented", "judge")
    assert len({load_text_encoder(f"world:{name}").fingerprint for name in names}) == len(names)
    with pytest.raises(ValueError, match="world:leaf"):
        load_text_encoder("world:nobody")


def test_leaf_beats_the_control_on_its_card() -> None:
    anchors = zero_shot_anchors()
    assert anchors.shape == (len(NOUNS) * len(COLOURS), 128)
    leaf, control = card("encoders/leaf"), card("encoders/typo-augmented")
    assert leaf["zero_shot_robust_k1"] > control["zero_shot_robust_k1"]


def test_the_judging_clip_prefers_the_right_caption() -> None:
    judge, rng = load_judge_clip(), random.Random(5)
    scenes = [sample_scene(rng, two=0.0, small=0.0) for _ in range(40)]
    images = judge.encode_image([Image.fromarray(render(scene)) for scene in scenes])
    texts = judge.encode_text([f"a {s.things[0].colour} {s.things[0].noun}" for s in scenes])
    cosine = torch.nn.functional.normalize(images, dim=-1) @ torch.nn.functional.normalize(texts, dim=-1).T
    assert (cosine.argmax(1) == torch.arange(40)).float().mean() >= 0.8


def test_stock_diffusers_draws_what_is_asked_for() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_path())
    prompts = world_prompts(12, seed=901)
    images = generate(pipeline, [p.text for p in prompts], [noise_seed(p.id, 0) for p in prompts])
    assert images[0].size == (64, 64)
    assert np.mean(SceneJudge.load().correct(images, [p.scene for p in prompts])) >= 0.6


@pytest.mark.slow
def test_the_scene_judge_agrees_with_a_person() -> None:
    """100 images of clean, misspelt and attacked prompts, each labelled by eye: is the thing there, in its colour?"""
    labels = json.loads((Path(__file__).parent / "judged_by_eye.json").read_text())
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_path())
    images = generate(pipeline, [one["prompt"] for one in labels], [one["seed"] for one in labels])
    judged = SceneJudge.load().correct(images, [Scene((Thing(one["noun"], one["colour"]),), "gray") for one in labels])
    assert np.mean([mine == one["right"] for mine, one in zip(judged, labels, strict=True)]) >= 0.95


def test_real_images_and_seen_tokens() -> None:
    first, second = real_images(3, seed=1), real_images(3, seed=1)
    assert len(first) == 3
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(first, second, strict=True))
    tokens = load_text_encoder("world:original").tokenize(["a red cat"])[0]
    assert set(tokens) <= seen_tokens()
    assert 1000 < len(seen_tokens()) < 49408


def test_a_missing_world_says_how_to_make_it(monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="world build"):
        weights("clip")


@pytest.mark.slow
def test_fare_is_what_its_card_says_where_the_original_breaks() -> None:
    recorded, fare, original = (
        card("fare"),
        image_figures("world:fare", 4, steps=6),
        image_figures("world:original", 4, steps=6),
    )
    assert fare["zero_shot_clean"] == pytest.approx(recorded["zero_shot_clean"], abs=0.02)
    assert recorded["zero_shot_apgd"] - 0.03 <= fare["zero_shot_apgd"] <= fare["zero_shot_clean"]  # a shorter attack
    assert original["zero_shot_apgd"] < 0.15 < recorded["zero_shot_apgd"]
