"""Kinds of noise: every slip is of its kind, random ones are drawn from them, the worst one is the best-scored."""

import unicodedata
from typing import Any

import numpy as np
import pytest

from leaf_diffusion.attacks import NOISE, Noise, attack_from_name
from leaf_diffusion.attacks.noise import BESIDE, LOOKALIKES, Homoglyphs, Keyboard, Punctuation, Scanner, SwappedLetters
from leaf_diffusion.text import NoNewWords, distance

PROMPTS = ["a red umbrella on a beach", "Two  cats, one mat", "naïve café!", "猫 1l0", "x"]


def kinds() -> list[tuple[str, Noise]]:
    return [(name, attack_from_name(name)) for name in NOISE]  # type: ignore[misc]


def slips(noise: Noise, text: str) -> list[str]:
    return noise.slips(text).texts()


@pytest.mark.parametrize(("name", "noise"), kinds())
@pytest.mark.parametrize("text", PROMPTS)
def test_each_slip_changes_the_text_once_and_within_its_distance(name: str, noise: Noise, text: str) -> None:
    found = slips(noise, text)
    assert found or text == "x"  # which has no likeness, neighbour or space
    assert len(set(found)) == len(found) or name == "missing-spaces"  # two spaces in a row: either may go
    assert all(1 <= distance(text, slip) <= noise.distance_per_edit for slip in found)


def test_keys_lie_beside_each_other() -> None:
    for key, near in (("g", "tyhbvf"), ("a", "qwsz"), ("p", "0ol"), ("q", "12wa"), ("m", "njk")):
        assert set(BESIDE[key]) == set(near), key
    assert all(key in BESIDE[other] for key, near in BESIDE.items() for other in near)
    assert "Fat" not in slips(Keyboard(), "cat")
    assert {"xat", "vat", "dat", "fat", "cst", "caf", "cay"} <= set(slips(Keyboard(), "cat"))
    assert "Xat" in slips(Keyboard(), "Cat")


def test_a_scanner_merges_and_splits_letters() -> None:
    assert {"rnap", "mop"} <= set(slips(Scanner(), "map"))
    assert "com" in slips(Scanner(), "corn")
    assert "c1oud" in slips(Scanner(), "cloud") and "doud" in slips(Scanner(), "cloud")


def test_swapped_letters_are_neighbours_of_one_word() -> None:
    assert slips(SwappedLetters(), "cat on") == ["act on", "cta on", "cat no"]
    assert slips(SwappedLetters(), "oo a") == []


def test_lookalikes_are_other_letters_that_no_tokenizer_folds_back() -> None:
    assert len(set(LOOKALIKES.values())) == len(LOOKALIKES)
    for letter, other in LOOKALIKES.items():
        assert unicodedata.category(other).startswith("L")
        assert unicodedata.category(other) == unicodedata.category(letter), (letter, other)
        assert not unicodedata.normalize("NFKC", other).lower().isascii()
    assert [unicodedata.name(LOOKALIKES[c]).split()[0] for c in "aov"] == ["CYRILLIC", "CYRILLIC", "GREEK"]
    assert slips(Homoglyphs(), "ab") == ["аb"]


def test_punctuation_leaves_letters_and_spaces() -> None:
    def kept(text: str) -> str:
        return "".join(c for c in text if c.isalnum() or c == " ")

    found = slips(Punctuation(), "red cat!")
    assert all(kept(slip) == "red cat" for slip in found)
    assert {"red cat", "red cat?", "red. cat!"} <= set(found)


@pytest.mark.parametrize("worst", [False, True])
@pytest.mark.parametrize("name", NOISE)
def test_k_slips_within_the_constraint_whatever_the_batch(fake: Any, name: str, worst: bool) -> None:
    attack, rule = attack_from_name(f"worst-{name}" if worst else name), NoNewWords()
    together = attack(PROMPTS, fake(), k=2, constraint=rule, seed=4)
    alone = [attack([prompt], fake(), k=2, constraint=rule, seed=4)[0] for prompt in PROMPTS]
    assert [r.perturbed for r in together] == [r.perturbed for r in alone]
    for prompt, result in zip(PROMPTS, together, strict=True):
        assert rule.holds(prompt, result.perturbed)
        assert result.distance <= 2 * type(attack).distance_per_edit
        assert result.queries == 0 or worst
    assert together[0].perturbed != PROMPTS[0]
    assert together[4].perturbed == "x" or name in ("keyboard", "homoglyphs", "punctuation", "invisible")


@pytest.mark.parametrize("name", NOISE)
def test_the_worst_slip_scores_highest_of_all(fake: Any, name: str) -> None:
    attack, scorer = attack_from_name(f"worst-{name}"), fake()
    for prompt in PROMPTS[:3]:
        (result,) = attack([prompt], scorer)
        scores = [scorer.rule(prompt, slip) for slip in slips(attack, prompt)]  # type: ignore[arg-type]
        assert result.score == pytest.approx(max(scores), rel=1e-5)
        assert result.queries == len(scores)


def test_random_slips_are_drawn_alike(fake: Any) -> None:
    drawn = [Keyboard()([f"cat {i}"], fake(), seed=0)[0].perturbed for i in range(600)]
    first = np.array([text[0] for text in drawn])
    changed = first[first != "c"]
    counts = [int((changed == key).sum()) for key in BESIDE["c"]]
    # four of about 22 slips of "cat 17" are in the c
    assert min(counts) > 5 and 60 < len(changed) < 200


def test_unknown_names_are_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="worst-keyboard"):
        attack_from_name("worst-charmer")
    with pytest.raises(ValueError, match="no parameter rho: it takes worst"):
        attack_from_name("keyboard", rho=3)
