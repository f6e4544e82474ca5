"""Texts two edits away, listed one by one, against the set of all of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaf_diffusion.text import distance, neighbours
from leaf_diffusion.text.two_edits import two_edits


def all_of(text: str, alphabet: str) -> set[str]:
    once = set(neighbours(text, alphabet).texts())
    return {other for middle in once for other in neighbours(middle, alphabet).texts()} - once - {text}


# few letters: runs and periods, where one text is reached in many ways; alphabets that lack what stands in the text
@settings(deadline=None, max_examples=60)
@given(st.text("abc", max_size=6), st.sampled_from(["", "a", "x", "ab", "axc", "xyé"]))
def test_each_text_at_distance_two_is_listed_once(text: str, alphabet: str) -> None:
    listed = [other for part in two_edits(text, alphabet) for other in part.texts()]
    assert len(listed) == len(set(listed))
    assert set(listed) == all_of(text, alphabet)
    assert all(distance(text, other) == 2 for other in listed)


@pytest.mark.parametrize("text", ["aa", "猫"])
def test_over_the_whole_alphabet(text: str) -> None:
    listed = [other for part in two_edits(text) for other in part.texts()]
    assert len(listed) == len(set(listed)) and set(listed) == all_of(text, "".join(map(chr, range(32, 127))))


def test_lists_are_edits_of_the_texts_between() -> None:
    bases = [part.base for part in two_edits("a cat", "xyz")]
    assert bases == neighbours("a cat", "xyz").texts()
