"""The edit space against brute force, on any Unicode."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaf_diffusion.text import (
    ALPHABET,
    DELETE,
    Candidates,
    apply_edit,
    distance,
    n_slots,
    neighbours,
    random_edits,
    slot_edits,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
AWKWARD = ["naïve café", "cafe\u0301", "猫が好き", "a 🐈‍⬛ cat", "кошка", '"a cat" \'s', "", "  ", "a\0b"]


def naive_distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


@given(TEXT, TEXT)
def test_distance_is_levenshtein_on_code_points(a: str, b: str) -> None:
    assert distance(a, b) == naive_distance(a, b)


def test_slots_interleave_gaps_and_characters() -> None:
    assert n_slots("ab") == 5
    assert [apply_edit("ab", slot, "x") for slot in range(5)] == ["xab", "xb", "axb", "ax", "abx"]
    assert [apply_edit("ab", slot, DELETE) for slot in range(5)] == ["ab", "b", "ab", "a", "ab"]


@pytest.mark.parametrize(("slot", "character"), [(-1, "x"), (5, "x"), (0, "xy")])
def test_wrong_edits_are_refused(slot: int, character: str) -> None:
    with pytest.raises(ValueError, match=r"slot|one character"):
        apply_edit("ab", slot, character)
    with pytest.raises(ValueError, match=r"slot|one character"):
        Candidates.edits("ab", [slot], [character])


def test_alphabet_is_the_papers() -> None:
    assert len([*ALPHABET, DELETE]) == 96
    assert all(c in ALPHABET for c in " _azAZ09~")


@pytest.mark.parametrize("text", AWKWARD)
def test_neighbours_are_the_ball_of_radius_one_each_once(text: str) -> None:
    texts = neighbours(text).texts()
    brute = {apply_edit(text, s, c) for s in range(n_slots(text)) for c in [*ALPHABET, DELETE]} - {text}
    assert len(texts) == len(set(texts))
    assert set(texts) == brute


@given(TEXT, st.text(max_size=4, alphabet="ab é🐈"), st.integers(0, 2**32))
def test_every_candidate_is_one_edit_away(text: str, alphabet: str, seed: int) -> None:
    lists = [neighbours(text, alphabet), slot_edits(text, range(n_slots(text)), alphabet)]
    if text or alphabet:
        lists.append(random_edits(text, 20, np.random.default_rng(seed), alphabet))
        assert len(lists[-1]) == 20
    for candidates in lists:
        assert all(distance(text, t) == 1 for t in candidates.texts())
        assert candidates.texts() == [candidates.text(i) for i in range(len(candidates))]
    assert set(lists[0].texts()) == set(lists[1].texts())


def test_random_edits_reach_everything_and_repeat_by_seed() -> None:
    drawn = random_edits("ab", 5000, np.random.default_rng(0), "x")
    assert set(drawn.texts()) == set(neighbours("ab", "x").texts())
    assert drawn.texts() == random_edits("ab", 5000, np.random.default_rng(0), "x").texts()
    with pytest.raises(ValueError, match="no edit"):
        random_edits("", 1, np.random.default_rng(0), "")


def test_selection_keeps_the_form() -> None:
    edits = Candidates.edits("ab", [0, 1, 2], ["x", "", "y"])
    assert edits.base == "ab"
    assert edits[np.array([True, False, True])].texts() == ["xab", "ayb"]
    assert edits[[2, 0]].texts() == ["ayb", "xab"]
    assert edits[:1].texts() == ["xab"]
    assert len(edits[[]]) == 0
    assert edits[[]].base == "ab"
    texts = Candidates.from_texts(["one", "two", "three"])
    assert texts[np.array([2, 0])].texts() == ["three", "one"]
    assert (texts.base, texts.slots, texts.characters, texts.token_rows) == (None, None, None, None)
    rows = Candidates.from_tokens([[1, 2], [3]])
    assert rows[np.array([False, True])].token_rows == [[3]]
    with pytest.raises(TypeError, match=r"text\(i\)"):
        edits[1]


def test_candidates_are_immutable() -> None:
    edits = Candidates.edits("ab", [0], ["x"])
    assert edits.slots is not None
    with pytest.raises(ValueError, match="read-only"):
        edits.slots[0] = 1
    source = np.array([0, 1])
    kept = Candidates.edits("ab", source, ["x", "y"])
    source[0] = 4
    assert kept.texts() == ["xab", "yb"]
    characters = np.array(["x"], dtype=object)
    kept = Candidates.edits("ab", [0], characters)
    characters[0] = "z"
    assert kept.texts() == ["xab"]


def test_none_is_empty_and_token_rows_have_no_text() -> None:
    assert len(Candidates.none()) == 0
    assert Candidates.none().texts() == []
    rows = Candidates.from_tokens([[1, 2]])
    for ask in (rows.texts, lambda: rows.text(0)):
        with pytest.raises(ValueError, match="token rows"):
            ask()
    with pytest.raises(TypeError, match="one string"):
        Candidates.from_texts("a cat")
    with pytest.raises(ValueError, match="2 slots but 1"):
        Candidates.edits("ab", [0, 1], ["x"])


@settings(max_examples=50)
@given(TEXT, st.data())
def test_a_nul_and_any_other_character_survive(text: str, data: st.DataObject) -> None:
    slot = data.draw(st.integers(0, 2 * len(text)))
    character = data.draw(st.one_of(st.just("\0"), st.characters(exclude_categories=["Cs"])))
    assert Candidates.edits(text, [slot], [character]).texts() == [apply_edit(text, slot, character)]
