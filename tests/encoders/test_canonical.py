"""Misspellings undone: what is corrected, what is left alone, and that correcting twice changes nothing."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import pytest

from leaf_diffusion.encoders import load_text_encoder
from leaf_diffusion.encoders.base import Defence
from leaf_diffusion.encoders.defences import (
    Canonical,
    CaptionModel,
    defence_from_name,
    english_captions,
    split_defence,
)
from leaf_diffusion.encoders.defences.caption_model import END, START
from leaf_diffusion.evaluation.encoders import EncoderName
from leaf_diffusion.text import NoNewWords, neighbours

CAPTIONS = ["a black cat sits on the sofa", "a red bus on the street", "two cats sit on a sofa", "a man with a hat"] * 3
SMALL = Canonical(CaptionModel(CAPTIONS), keep=("zorbo",))


@pytest.fixture(scope="module")
def english() -> Canonical:
    return Canonical(english_captions())


@pytest.mark.parametrize(
    "misspelt",
    [
        "a man standing in front of a red bsu", "a man stending in front of a red bus", "a man standing in frnt of a red bus",
        "a man standing in front of a red buse", "a man standing in front of a redbus", "a man sta nding in front of a red bus",
        "a man st nding in front of a red bus", "a man sta#nding in front of a red bus", "a man stanXding in front of a red bus",
        "a man sta7ding in front of a red bus", "a man standing in front of x red bus",
        "a man standing in front of , red bus", "A man standing in front of a red bus.", "a man, standing in front of a red bus",
        "a man standing  in front of a red bus", "a man standing in front of an red bus", "a ma\u200bn standing in front of a red bus",
    ],
)  # fmt: skip
def test_a_misspelling_is_undone(english: Canonical, misspelt: str) -> None:
    assert isinstance(english, Defence)
    assert english([misspelt]) == ["a man standing in front of a red bus"]


def test_two_spaces_may_have_held_an_article() -> None:
    assert SMALL(["a cat sits on  sofa", "a  black cat"]) == ["a cat sits on a sofa", "a black cat"]


def test_the_captions_decide_between_words_that_are_as_near() -> None:
    fish = Canonical(CaptionModel(["a plate of fish on a table"] * 5))
    dish = Canonical(CaptionModel(["a plate and a dish on a table", "wash the dish"] * 5))
    assert fish(["a plate of xish"]) == ["a plate of fish"]
    assert dish(["wash the xish"]) == ["wash the dish"]


def test_the_words_around_decide() -> None:
    both = Canonical(CaptionModel(["he drives a red car"] * 5 + ["he strokes a black cat"] * 5))
    assert both(["a red caz", "a black caz"]) == ["a red car", "a black cat"]


@pytest.mark.parametrize(
    "text",
    [
        "a cat (red hat:1.2) on a sofa", "a cat <lora:stlye:0.8>", "a cat [fron:back:0.5]", "a zorbo on a sofa", "sks dog",
        "4k photo", "a photo from 1987", "2 cats sit on a sofa", "naïve café", "Szymborska", "a cat 猫",
    ],
)  # fmt: skip
def test_what_is_meant_stays(text: str) -> None:
    assert SMALL([text]) == [text.lower() if "<" not in text else text]


def test_nothing_and_signs_alone() -> None:
    assert SMALL(["", "   ", "...", "- | -"]) == ["", "", "", ""]
    assert SMALL(["x" * 1000]) == ["x" * 1000]


def test_untrusted_prompts_take_no_long_time() -> None:
    for text in (
        "(:" + "1" * 30_000,
        "(" * 30_000,
        "(a:" * 10_000,
        "<" * 30_000,
        "[" * 30_000,
        "x" * 30_000,
        "- " * 10_000,
    ):
        start = time.perf_counter()
        SMALL([text])
        assert time.perf_counter() - start < 20


def test_corrected_twice_is_corrected_once(english: Canonical) -> None:
    rng = random.Random(0)
    prompts = ["A black cat sits on the sofa.", "a woman with an umbrella & two dogs at the beach", "an hour of rain"]
    texts = [rng.choice(neighbours(rng.choice(prompts)).texts()) for _ in range(300)]
    once = english(texts)
    assert english(once) == once


def test_most_edits_of_a_plain_caption_are_undone(english: Canonical) -> None:
    prompt = "A woman holding an umbrella walks along the beach."
    edits = neighbours(prompt)
    texts = edits[NoNewWords().allows(prompt, prompt, edits)].texts()
    (clean,) = english([prompt])
    assert clean == "a woman holding an umbrella walks along the beach"
    undone = sum(text == clean for text in english(texts))
    assert 0.97 * len(texts) < undone < len(texts)


def test_results_do_not_depend_on_what_came_before() -> None:
    texts = ["a blak cat", "a rde bus", "a man wiht a hat"]
    together = SMALL(texts)
    assert [Canonical(CaptionModel(CAPTIONS))([text])[0] for text in reversed(texts)] == together[::-1]


def test_the_model_gives_probabilities() -> None:
    model = CaptionModel(CAPTIONS)
    followers = {b for a, b in model._pairs if a == "sofa"}
    assert followers == {END}
    for before in (START, "cat", "sofa", "unseen"):
        listed = math.fsum(math.exp(-model.cost(before, word)) for word in {*model.counts, NEVER})
        assert 0.3 < listed < 1.01
        articles = math.fsum(math.exp(-model.article_cost(each, before, "cat")) for each in ("", "a", "the"))
        assert articles == pytest.approx(1)
    assert model.cost("black", "cat") < model.cost("black", "hat") < model.cost("black", NEVER)
    assert model.article_cost("the", "on", "sofa") < model.article_cost("", "on", "sofa")


NEVER = "qwertz"


def test_the_fingerprint_follows_the_captions_and_what_is_kept(tmp_path: Path) -> None:
    (file := tmp_path / "captions.txt").write_text("a cat on a sofa\n")
    (other := tmp_path / "other.txt").write_text("a dog on a sofa\n")
    found = [
        Canonical(), Canonical(keep=("zorbo",)), defence_from_name(f"canonical:{file}"), defence_from_name(f"canonical:{other}"),
    ]  # fmt: skip
    assert len({each.fingerprint for each in found}) == len(found)
    assert Canonical().fingerprint == defence_from_name("canonical").fingerprint


def test_names(tmp_path: Path) -> None:
    assert split_defence("leaf+canonical:world") == ("leaf", "canonical:world")
    assert split_defence("a+b/model+speller") == ("a+b/model", "speller")
    assert split_defence("models/c+") == ("models/c+", None)
    name = EncoderName.parse("leaf+canonical:a/b.txt", world=True)
    assert (name.label, name.source, name.defence) == ("leaf+canonical", "world:leaf", "canonical:a/b.txt")
    with pytest.raises(ValueError, match="only canonical takes captions"):
        defence_from_name("speller:file.txt")
    with pytest.raises(ValueError, match="unknown defence 'canoncal'"):
        defence_from_name("canoncal")
    with pytest.raises(FileNotFoundError):
        defence_from_name("canonical:no/such/file.txt")
    (empty := tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no captions"):
        defence_from_name(f"canonical:{empty}")


def test_an_encoder_reads_behind_it() -> None:
    encoder = load_text_encoder("world:original", defence="canonical:world")
    assert encoder.tokenize(encoder.preprocess(["a phto of a red umbrlla"])) == encoder.tokenize(
        ["a photo of a red umbrella"]
    )
