import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leaf_diffusion.text.edits import distance
from leaf_diffusion.tokens.tokenizer import clip_tokenizer
from leaf_diffusion.world.captions import (
    NUMBERS,
    describe,
    is_held_out,
    other_readings,
    plural,
    web_caption,
    world_prompts,
    zero_shot_prompts,
)
from leaf_diffusion.world.corpus import draw_corpus
from leaf_diffusion.world.scenes import (
    BACKGROUNDS,
    COLOURS,
    MINIMAL_PAIRS,
    NOUNS,
    SIZE,
    Scene,
    Split,
    Thing,
    render,
    sample_scene,
    twin,
)


def test_minimal_pairs_are_nouns_one_edit_apart() -> None:
    assert all(distance(a, b) <= 2 and {a, b} <= set(NOUNS) for a, b in MINIMAL_PAIRS)
    assert sum(distance(a, b) == 1 for a, b in MINIMAL_PAIRS) >= 10


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(["train", "test"]))
def test_scenes_respect_the_split_and_are_deterministic(seed: int, split: Split) -> None:
    first, again = (sample_scene(random.Random(seed), split=split, two=0.5) for _ in range(2))
    assert first == again
    assert first.things
    assert all(is_held_out(Scene((thing,), first.background)) == (split == "test") for thing in first.things)
    assert np.array_equal(render(first), render(again))


def test_every_noun_draws_a_image_of_its_own() -> None:
    images = [render(Scene((Thing(noun, "red"),), "gray")) for noun in NOUNS]
    for i, one in enumerate(images):
        assert one.shape == (64, 64, 3)
        for other in images[:i]:
            assert np.abs(one.astype(int) - other).mean() > 2


def test_colours_are_where_the_scene_puts_them() -> None:
    image = render(
        Scene((Thing("ball", "red", 0.26, 0.5, 0.22), Thing("heart", "blue", 0.74, 0.5, 0.22)), "gray", "left")
    )
    assert np.array_equal(image[0, 0], BACKGROUNDS["gray"])
    assert np.array_equal(image[26, 10], COLOURS["red"])
    assert np.array_equal(image[30, 46], COLOURS["blue"])


def test_a_scene_without_a_colour_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="colour"):
        render(Scene((Thing("cat", None),), "gray"))


def test_captions_say_what_the_scene_shows() -> None:
    rng = random.Random(3)
    for _ in range(300):
        scene = sample_scene(rng, two=0.5)
        text, asked = describe(scene, rng)
        for thing in asked.things:
            assert thing.noun in text and (thing.colour is None or thing.colour in text)
        assert "a orange" not in text and "a umbrella" not in text
        if scene.small:
            assert any(word in text for word in ("small", "tiny", "little"))


def test_typos_and_fillers_come_at_their_rate() -> None:
    rng = random.Random(0)
    changed = [web_caption("a red cat", rng, filler=0.0, typo=0.1) for _ in range(2000)]
    assert 0.07 < np.mean([text != "a red cat" for text in changed]) < 0.13
    assert max(distance("a red cat", text) for text in changed) == 1
    filled = [web_caption("a red cat", rng, filler=0.3, typo=0.0) for _ in range(2000)]
    assert 0.25 < np.mean([text != "a red cat" for text in filled]) < 0.35
    assert all("a red cat" in text for text in filled)


def test_prompts_are_distinct_repeatable_and_partly_held_out() -> None:
    prompts = world_prompts(120, seed=1)
    assert prompts == world_prompts(120, seed=1) != world_prompts(120, seed=2)
    assert len({p.text for p in prompts}) == 120
    assert 0.3 < np.mean([is_held_out(p.scene) for p in prompts]) < 0.7
    assert [len(p.scene.things) for p in world_prompts(20, seed=1, two=1.0)] == [2] * 20
    with pytest.raises(ValueError, match="distinct prompts"):
        world_prompts(2500)


def several(seed: int, *, two: float = 0.4, three: float = 0.4) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng, two=two, three=three, counted=0.3) for _ in range(300)]


def test_scenes_of_three_things_and_counts_fit_into_the_image() -> None:
    scenes = several(1)
    assert {len(scene.things) for scene in scenes} == {1, 2, 3}
    assert 40 < sum(scene.counted for scene in scenes) < 110
    for scene in scenes:
        for thing in scene.things:
            assert all(thing.radius <= 1.04 * at and at + thing.radius <= 1.03 for at in (thing.x, thing.y))


def test_captions_of_three_things_and_counts_say_what_the_scene_shows() -> None:
    for scene in several(2, two=0.3, three=0.7):
        for split in ("train", "test"):
            text, asked = describe(scene, random.Random(0), split)
            assert asked.things and all(f"{thing.colour} " in text for thing in asked.things)
            if scene.counted:
                assert f"{NUMBERS[len(scene.things)]} " in text and plural(scene.things[0].noun) in text
                assert asked.relation == "beside"
            elif asked.relation != "beside" and " of " not in text and "below" not in text and "right" not in text:
                places = [text.index(f"{thing.colour} {thing.noun}") for thing in asked.things]
                assert places == sorted(places)
    assert [plural(noun) for noun in ("cat", "mouse", "butterfly", "dish")] == ["cats", "mice", "butterflies", "dishes"]


def test_a_twin_differs_in_one_thing_and_is_told_by_the_same_template() -> None:
    rng, unlike = random.Random(4), 0
    for scene in several(3):
        other = twin(scene, rng)
        assert not is_held_out(other) and other.background == scene.background and other.relation == scene.relation
        mine, theirs = ([(thing.noun, thing.colour) for thing in one.things] for one in (scene, other))
        changed = sum(a != b for a, b in zip(mine, theirs, strict=False))
        assert changed in (1, 2) or (scene.counted and len(mine) != len(theirs))
        texts = [describe(one, random.Random(7))[0] for one in (scene, other)]
        if not scene.counted and not other.counted:
            words = [re.sub(r"\b(an?)\b", "a", text).split() for text in texts]
            assert len(words[0]) == len(words[1])
            assert sum(a != b for a, b in zip(*words, strict=True)) <= 4
        unlike += texts[0] != texts[1]
    assert unlike > 240  # the rest says neither colour nor noun that differ


def test_a_corpus_is_pairs_and_the_same_for_any_number_of_processes() -> None:
    one, two = (draw_corpus(1200, 5, processes=n) for n in (1, 2))
    assert torch.equal(one.images, two.images) and torch.equal(one.rows, two.rows) and one.scenes == two.scenes
    assert one.images.shape == (1200, 3, SIZE, SIZE) and one.rows.shape == (2400, 77)
    assert np.array_equal(one.images[7].permute(1, 2, 0), render(one.scenes[7]))
    tokens = one.rows[14, 1 : int(one.lengths[14]) - 1].tolist()
    assert any(thing.noun in clip_tokenizer().decode(tokens) for thing in one.scenes[7].things)
    images, captions = one.pairs(64, random.Random(0))
    assert torch.equal(images[::2] + 1, images[1::2]) and torch.equal(captions // 2, images)
    assert torch.equal(captions[::2] % 2, captions[1::2] % 2)
    with pytest.raises(ValueError, match="even number"):
        draw_corpus(7, 5)


def test_zero_shot_classes() -> None:
    prompts = zero_shot_prompts()
    assert len({text for text, _, _ in prompts}) == len(NOUNS) * len(COLOURS)


@pytest.mark.parametrize(
    ("attacked", "k", "nouns"),
    [
        ("a red cVp", 1, ["cup"]),
        ("a red caO", 1, ["car", "cat"]),
        ("a red cat", 1, ["cat"]),  # not of a bat, of which it would be a new word
        ("a rXd cap", 1, []),
        ("a rXd cVp", 2, ["cup"]),
        ("a red Xp", 2, ["cup"]),
    ],
)
def test_misspellings_that_are_those_of_another_noun(attacked: str, k: int, nouns: list[str]) -> None:
    assert other_readings("a red cap", attacked, k) == [f"a red {noun}" for noun in nouns]
    assert other_readings("a red umbrella", "a red umbrlla") == []
