"""The spelling corrector."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaf_diffusion.attacks import Invisible, Noise, Reordered
from leaf_diffusion.encoders.base import Defence
from leaf_diffusion.encoders.defences import Speller, Visible, english_speller
from leaf_diffusion.scoring import Drift, Scorer
from tests import tiny

WORDS = {"cat": 10, "bat": 99, "umbrella": 5, "red": 50, "a": 100, "on": 80, "don't": 3, "white": 4, "i": 9}
SPELLER = Speller(WORDS)


@pytest.mark.parametrize(
    ("given_text", "wanted"),
    [
        ("a red umbrela", "a red umbrella"),  # deletion
        ("a rxed umbrellla", "a red umbrella"),  # insertions
        ("Umbrxlla, RED umbrellaa!", "Umbrella, RED umbrella!"),  # case and punctuation
        ("UMBRELA  (wh1te)\tdont", "UMBRELLA  (white)\tdon't"),  # spaces stay, digits are errors
        ("rde umbrell-cat", "red umbrella-cat"),  # swapped neighbours, hyphens
        ("zat", "bat"),  # two words one edit away: the more frequent
        ("umbxxlla zebra x 42", "umbxxlla zebra x 42"),  # nothing near, single letters, numbers
        ("cat's", "cat's"),
        ("", ""),
    ],
)
def test_corrections(given_text: str, wanted: str) -> None:
    assert SPELLER([given_text]) == [wanted]


def test_two_edits_only_when_asked() -> None:
    assert Speller(WORDS, max_distance=2)(["umbxxlla"]) == ["umbrella"]
    assert Speller({"cut": 1, "umbrella": 1}, max_distance=2)(["cxt"]) == ["cut"]


def test_ties_without_frequencies() -> None:
    speller = Speller(["cat", "bat", "can", "cast"])
    assert speller(["cap"]) == ["can"]  # first letter, then length, then alphabet
    assert speller(["catt"]) == ["cat"]  # shorter than "cast"
    assert speller(["xat"]) == ["bat"]
    assert Speller(["bat", "cat"])(["cct"]) == ["cat"]


@given(st.lists(st.sampled_from(sorted(WORDS)), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_right_sentences_stay(words: list[str]) -> None:
    assert SPELLER([" ".join(words)]) == [" ".join(words)]


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_idempotent_and_keeps_spaces(text: str) -> None:
    (once,) = SPELLER([text])
    assert [c for c in once if c.isspace()] == [c for c in text if c.isspace()]
    assert SPELLER([once]) == [once]


def test_english() -> None:
    speller = english_speller()
    assert isinstance(speller, Defence)
    assert speller(["a phto of two catts on the beech"]) == ["a photo of two cats on the beech"]
    assert speller.fingerprint == english_speller().fingerprint != SPELLER.fingerprint


@pytest.mark.parametrize("attack", [Invisible(), Reordered()], ids=lambda attack: attack.name)
def test_what_is_not_seen_is_undone(attack: Noise) -> None:
    prompts, visible, rng = ["a red umbrella", "Two cats, 4k: [sks] (x:1.2)", "naïve café"], Visible(), random.Random(0)
    assert isinstance(visible, Defence)
    for prompt in prompts:
        text, seen = prompt, set[str]()
        for _ in range(3):  # slips in what slips made
            texts = attack.slips(text).texts()
            seen.update(visible(texts))
            text = rng.choice(texts)
        assert text != prompt
        assert seen == {prompt}


def test_what_belongs_to_the_spelling_stays() -> None:
    for text in ("👩\u200d🚀 🏳️\u200d🌈", "می\u200cخواهم", "क्\u200dष", "plain text\t", "שלום cat", "a\u00a0b"):
        assert Visible()([text]) == [text]
    assert Visible()(["a\u202egn\u202cpe", "\u202e\u202eab\u202cc\u202c", "x\u202e y", "\u2066cat\u2069", "a\ufe0f\u200d"]) == [
        "angpe", "cab", "x y", "cat", "a",
    ]  # fmt: skip


def test_an_encoder_behind_it_is_not_moved_by_what_is_not_seen() -> None:
    encoder = tiny.encoder(defence=Visible())
    for attack in (Invisible(worst=True), Reordered(worst=True)):
        (result,) = attack(["a red umbrella"], Scorer(encoder, Drift("l2")), k=2)
        assert result.score <= 1e-6
        (moved,) = attack(["a red umbrella"], Scorer(tiny.encoder(), Drift("l2")), k=2)
        assert moved.score > 1e-4


def test_fast_enough_for_attacks() -> None:
    speller, rng = english_speller(), random.Random(0)
    base = "a red umbrella on a sandy beach"
    texts = [base[:i] + rng.choice("abcdefghij") + base[i:] for i in range(len(base)) for _ in range(30)]
    start = time.perf_counter()
    speller(texts)
    assert time.perf_counter() - start < 5


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="dictionary is empty"):
        Speller([])
    with pytest.raises(ValueError, match="1 or 2"):
        Speller(WORDS, max_distance=3)
