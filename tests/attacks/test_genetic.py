"""A genetic search: what it asks, what it finds of a space that can be listed, and that it climbs."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaf_diffusion.attacks import Exhaustive, Genetic, attack_from_name
from leaf_diffusion.attacks.genetic import _applied, _sorted
from leaf_diffusion.scoring import Scorer
from leaf_diffusion.text import NoNewWords, apply_edit, distance, n_slots, neighbours, random_edits
from tests import tiny

PROMPTS = ["a red cat", "two hats on a mat", "naïve 🐈"]


def rugged(prompt: str, text: str) -> float:
    """Scores without ties and without a slope to climb."""
    return int.from_bytes(hashlib.sha256(f"{prompt}\n{text}".encode()).digest()[:4], "big") / 2**32 * (text != prompt)


def ball(prompt: str, alphabet: str, k: int) -> set[str]:
    """Every other text within k edits."""
    found = {prompt}
    for _ in range(k):
        found |= {text for one in found for text in neighbours(one, alphabet).texts()}
    return found - {prompt}


@pytest.mark.parametrize("k", [1, 2])
def test_with_a_large_budget_it_finds_the_best_of_all_texts(fake: Any, k: int) -> None:
    prompt, everything = "ab", ball("ab", "xy", k)
    scorer = fake(rugged)
    found = Genetic(population=200, generations=60, alphabet="xy")([prompt], scorer, k=k)[0]
    asked = scorer.bound[0].seen[0]
    assert len(asked) == len(set(asked)) == found.queries
    assert set(asked) <= everything and len(asked) >= (1 if k == 1 else 0.95) * len(everything)
    assert found.perturbed == max(asked, key=lambda text: rugged(prompt, text))
    if k == 1:
        assert (
            found.perturbed == Exhaustive()([prompt], fake(lambda p, t: rugged(p, t) * (t in everything)))[0].perturbed
        )


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_every_text_is_new_allowed_and_within_k(fake: Any, k: int) -> None:
    rule, attack, scorer = NoNewWords(), Genetic(population=15, generations=6), fake(rugged)
    for prompt, result, asked in zip(
        PROMPTS, attack(PROMPTS, scorer, k=k, constraint=rule, seed=2), scorer.bound[0].seen, strict=True
    ):
        assert 85 <= len(asked) == len(set(asked)) == result.queries <= 15 * 6
        assert all(1 <= distance(prompt, text) <= k and rule.holds(prompt, text) for text in asked)
        assert max(distance(prompt, text) for text in asked) == k
        assert result.perturbed == max(asked, key=lambda text: rugged(prompt, text))


def test_results_follow_from_the_seed_and_the_prompt(fake: Any) -> None:
    attack = Genetic(population=10, generations=4)
    together = attack(PROMPTS, fake(), k=2, seed=3)
    assert together == [attack([prompt], fake(), k=2, seed=3)[0] for prompt in PROMPTS]
    assert [r.perturbed for r in together] != [r.perturbed for r in attack(PROMPTS, fake(), k=2, seed=4)]
    along = attack.path(PROMPTS, fake(), (1, 2), seed=3)
    assert along[2] == together and all(r.distance <= 1 for r in along[1])


def test_the_first_flip_ends_it(fake: Any) -> None:
    attack = Genetic(population=20, generations=50)
    easy, hard, solved = attack(
        ["a red cat", "two hats", "solved"],
        fake(lambda prompt, text: {"a red cat": rugged(prompt, text), "two hats": 0.0}.get(prompt, 9.0), 0.9),
        k=2,
    )
    assert easy.success and easy.queries < 500 and easy.queries % 20 == 0
    assert (hard.success, hard.perturbed) == (False, "two hats") and 500 < hard.queries <= 1000
    assert (solved.success, solved.perturbed, solved.queries) == (True, "solved", 0)


def test_a_population_holds_one_of_each_score(fake: Any) -> None:
    """Upper and lower case are read alike: twins would crowd out the rest."""
    scorer = fake(lambda _, text: float(text.lower().count("x")))
    found = Genetic(population=4, generations=12, alphabet="xXab")(["a cat"], scorer, k=3)[0]
    assert found.score == 3


def test_it_climbs(fake: Any) -> None:
    encoder = tiny.encoder(**tiny.WIDER | {"initializer_factor": 8.0})
    prompts = [*PROMPTS, "a blue umbrella", "the house by the sea"]
    found = Genetic(population=20, generations=12)(prompts, Scorer(encoder), k=3)
    better = 0
    for prompt, result in zip(prompts, found, strict=True):
        rng, texts = np.random.default_rng(0), list[str]()
        for _ in range(result.queries):
            text = prompt
            for _ in range(3):
                text = random_edits(text, 1, rng).text(0)
            texts.append(text)
        clean, *moved = encoder.features(encoder.tokenize([prompt, *texts])).detach()
        better += result.score > max(float((each - clean).square().sum()) for each in moved)
    assert better >= 4


def test_a_strict_rule_leaves_few_texts_or_none(fake: Any) -> None:
    class Only(NoNewWords):
        def allows(self, original: str, current: str, candidates: Any) -> Any:
            return np.array([text in ("a ca~t", original) for text in candidates.texts()], dtype=bool)

    found = Genetic(population=300, generations=20)(["a cat", "b"], fake(rugged), constraint=Only())
    assert [(r.perturbed, r.queries) for r in found] == [("a ca~t", 1), ("b", 0)]


EDIT = st.integers(0, n_slots("a cat") - 1).flatmap(
    lambda slot: st.tuples(st.just(slot), st.sampled_from(["x", " ", ""] if slot % 2 else ["x", " "]))
)


@given(st.lists(EDIT, max_size=5))
def test_edits_are_applied_as_one_after_the_other(edits: list[tuple[int, str]]) -> None:
    kept = _sorted(edits)
    assert {slot for slot, _ in edits} == {slot for slot, _ in kept}
    text = "a cat"
    for slot, letter in reversed(kept):  # from the right, so that slots further left stay where they are
        text = apply_edit(text, slot, letter)
    assert _applied("a cat", kept) == text
    assert distance("a cat", text) <= len(kept) <= len(edits)


def test_wrong_parameters_are_refused() -> None:
    for wrong in ({"population": 0}, {"generations": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            attack_from_name("genetic", **wrong)
    with pytest.raises(ValueError, match="alphabet"):
        Genetic(alphabet="")
