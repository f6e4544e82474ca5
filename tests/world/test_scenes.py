import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaf_diffusion.text.edits import distance
from leaf_diffusion.world.captions import describe, is_held_out, web_caption, world_prompts, zero_shot_prompts
from leaf_diffusion.world.scenes import BACKGROUNDS, COLOURS, MINIMAL_PAIRS, NOUNS, Scene, Thing, render, sample_scene


def test_minimal_pairs_are_nouns_one_edit_apart() -> None:
    assert all(distance(a, b) <= 2 and {a, b} <= set(NOUNS) for a, b in MINIMAL_PAIRS)
    assert sum(distance(a, b) == 1 for a, b in MINIMAL_PAIRS) >= 10


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(["train", "test"]))
def test_scenes_respect_the_split_and_are_deterministic(seed: int, split: str) -> None:
    first, again = (sample_scene(random.Random(seed), split=split, two=0.5) for _ in range(2))  # type: ignore[arg-type]
    assert first == again
    assert all(is_held_out(Scene((thing,), first.background)) == (split == "test") for thing in first.things)
    assert np.array_equal(render(first), render(again))


def test_every_noun_draws_a_picture_of_its_own() -> None:
    pictures = [render(Scene((Thing(noun, "red"),), "gray")) for noun in NOUNS]
    for i, one in enumerate(pictures):
        assert one.shape == (32, 32, 3)
        for other in pictures[:i]:
            assert np.abs(one.astype(int) - other).mean() > 3


def test_colours_are_where_the_scene_puts_them() -> None:
    picture = render(
        Scene((Thing("ball", "red", 0.26, 0.5, 0.22), Thing("heart", "blue", 0.74, 0.5, 0.22)), "gray", "left")
    )
    assert np.array_equal(picture[0, 0], BACKGROUNDS["gray"])
    assert np.array_equal(picture[13, 5], COLOURS["red"])
    assert np.array_equal(picture[15, 23], COLOURS["blue"])


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
    assert all(len(p.scene.things) == 2 for p in world_prompts(20, seed=1, two=1.0))
    with pytest.raises(ValueError, match="distinct prompts"):
        world_prompts(1500)


def test_zero_shot_classes() -> None:
    prompts = zero_shot_prompts()
    assert len({text for text, _, _ in prompts}) == len(NOUNS) * len(COLOURS)
