"""Each search on its own: budgets, stages, ties, and the faults of the published code that must not come back."""

from typing import Any

import pytest
import torch

from leaf_diffusion import load_text_encoder
from leaf_diffusion.attacks import ATTACKS, Charmer, Exhaustive, LeafAttack, argbest, attack_from_name, best_few
from leaf_diffusion.attacks.charmer import probes
from leaf_diffusion.scoring import Scorer
from leaf_diffusion.text import ALPHABET, Candidates, NoNewWords, apply_edit, n_slots, neighbours


def likes(target: str) -> Any:
    return lambda prompt, text: float(text == target)


def test_charmer_probes_every_slot_then_the_alphabet_in_the_best(fake: Any) -> None:
    scorer = fake()
    prompt = "a cat"
    result = Charmer(n_positions=2)([prompt], scorer)[0]
    seen = scorer.bound[0].seen[0]
    first = [apply_edit(prompt, s, "" if s == 3 else " ") for s in range(n_slots(prompt))]
    assert seen[:11] == first
    assert len(seen) == result.queries == 11 + 2 * 95  # 96 entries less the one that changes nothing
    ranked = sorted(range(11), key=lambda s: -scorer.rule(prompt, first[s]))[:2]
    stage_two = {apply_edit(prompt, s, c) for s in ranked for c in [*ALPHABET, ""]} - {prompt}
    assert set(seen[11:]) == stage_two
    assert result.perturbed in stage_two
    assert result.score == pytest.approx(max(scorer.rule(prompt, text) for text in stage_two), rel=1e-5)


def test_charmer_is_exhaustive_when_it_keeps_every_position(fake: Any) -> None:
    for prompt in ("a cat", "naïve 猫", '"'):
        full = Charmer(n_positions=99)([prompt], fake(), constraint=NoNewWords())[0]
        exact = Exhaustive()([prompt], fake(), constraint=NoNewWords())[0]
        cheap = Charmer(n_positions=1)([prompt], fake(), constraint=NoNewWords())[0]
        assert full.score == pytest.approx(exact.score)
        assert cheap.score <= exact.score * (1 + 1e-6)


def test_probes_need_not_be_allowed_but_scored_candidates_are(fake: Any) -> None:
    scorer, rule = fake(), NoNewWords()
    prompt = "a rainbow umbrella"
    Charmer(n_positions=20)([prompt], scorer, constraint=rule)
    seen = scorer.bound[0].seen[0]
    assert "a rain bow umbrella" in seen[: n_slots(prompt)]
    scored = seen[n_slots(prompt) :]
    assert scored and all(rule.holds(prompt, text) for text in scored)


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_a_path_is_the_calls_at_each_k(fake: Any, batch: int) -> None:
    attack = Charmer(n_positions=3, batch_prompts=batch)
    prompts = ["a cat", "naïve 🐈", "two red hats"]
    path = attack.path(prompts, fake(), (0, 1, 3), constraint=NoNewWords())
    assert list(path) == [0, 1, 3]
    for k, results in path.items():
        assert results == Charmer(n_positions=3)(prompts, fake(), k=k, constraint=NoNewWords())
    assert [r.distance for r in path[3]] == [3, 3, 3]
    assert attack.path([], fake()) == {1: [], 2: []}
    with pytest.raises(TypeError, match="one string"):
        attack.path("a cat", fake())
    with pytest.raises(ValueError, match="negative"):
        attack.path(["a cat"], fake(), (-1, 2))


def test_leaf_has_a_constant_budget(fake: Any) -> None:
    for rho in (1, 7, 50):
        for constraint in (None, NoNewWords()):
            scorer = fake(lambda prompt, text: float(len(text)))
            results = LeafAttack(rho=rho)(
                ["a cat", "x", "a long sentence about a beach"], scorer, k=2, constraint=constraint
            )
            assert [r.queries for r in results] == [4 * rho] * 3
    few = scorer.bound[0].seen[1][50:100]
    assert len(set(few)) == 50  # characters do not repeat while there are new ones


def test_leaf_draws_slots_and_characters_at_random(fake: Any) -> None:
    scorer = fake(lambda prompt, text: float(" " not in text))  # the best probe deletes the space: slot 3
    for seed in range(40):
        LeafAttack(rho=8)(["a cat"], scorer, seed=seed)
    seen = [bound.seen[0] for bound in scorer.bound[::2]]
    assert {text for each in seen for text in each[:8]} == set(probes("a cat").texts())
    at_the_space = {text for each in seen if "acat" in each[:8] for text in each[8:]}
    assert len(at_the_space) > 60
    assert "acat" in at_the_space  # deletion is one of the characters
    assert all(len(set(each[:8])) >= 7 for each in seen)  # a few slots give equal texts, none is drawn twice


def test_leaf_with_a_full_budget_finds_the_best_character_of_the_best_slot(fake: Any) -> None:
    scorer = fake()
    prompt = "a cat"
    result = LeafAttack(rho=96)([prompt], scorer)[0]
    assert result.perturbed == Charmer(n_positions=1)([prompt], fake())[0].perturbed


def test_leaf_moves_on_where_the_best_slot_allows_nothing(fake: Any) -> None:
    class OnlyTheFirstSlot(NoNewWords):
        def allows(self, original: str, current: str, candidates: Candidates) -> Any:
            assert candidates.slots is not None
            return candidates.slots == 0

        def holds(self, original: str, perturbed: str) -> bool:
            return True

    results = LeafAttack(rho=50)(["a cat"], fake(), constraint=OnlyTheFirstSlot())
    assert results[0].perturbed[1:] == "a cat"


def test_exhaustive_is_the_exact_maximum_and_asks_each_text_once(fake: Any) -> None:
    scorer = fake()
    prompt = "aab 猫"
    result = Exhaustive()([prompt], scorer)[0]
    texts = neighbours(prompt).texts()
    assert result.queries == len(texts) == len(set(scorer.bound[0].seen[0]))
    assert result.score == pytest.approx(max(scorer.rule(prompt, text) for text in texts), rel=1e-5)
    assert Exhaustive()([prompt], fake(likes(prompt)))[0].perturbed == prompt
    with pytest.raises(ValueError, match=r"exhaustive: takes k=2 at most"):
        Exhaustive()([prompt], fake(), k=3)


def test_every_single_edit_can_be_the_answer(fake: Any) -> None:
    """The published code never scored the last candidate and turned an inserted underscore into nothing."""
    prompt = "a_b "
    for target in neighbours(prompt, "_ ~").texts():
        assert Exhaustive()([prompt], fake(likes(target)))[0].perturbed == target
        assert Charmer(n_positions=9)([prompt], fake(likes(target)))[0].perturbed == target


def test_the_last_candidate_is_scored(fake: Any) -> None:
    last = neighbours("cat").texts()[-1]
    assert Exhaustive()(["cat"], fake(likes(last)))[0].perturbed == last


def test_an_underscore_is_a_character(fake: Any) -> None:
    result = Charmer()(["a cat"], fake(lambda prompt, text: text.count("_") + 0.1 * text.count(" ")), k=3)[0]
    assert result.perturbed.count("_") == 3


@pytest.mark.parametrize("batch", [1, 2, 3, 6])
def test_a_prompt_count_that_is_a_multiple_of_the_batch(fake: Any, batch: int) -> None:
    prompts = ["a cat", "a hat", "a bat", "a mat", "a rat", "a vat"]
    expected = Charmer(n_positions=2)(prompts, fake())
    assert Charmer(n_positions=2, batch_prompts=batch)(prompts, fake()) == expected


def test_deleting_the_only_character_is_an_edit(fake: Any) -> None:
    assert Exhaustive()(["a"], fake(likes("")))[0].perturbed == ""


def test_a_probe_is_a_space_or_a_deletion() -> None:
    assert probes("a b").texts() == [" a b", "  b", "a  b", "ab", "a  b", "a  ", "a b "]
    assert probes("a b", [3, 0]).texts() == ["ab", " a b"]


def test_ties_go_to_the_lowest_index() -> None:
    assert argbest(torch.tensor([1.0, 5.0, 5.000001, 4.9])) == 1
    assert argbest(torch.tensor([1.0, 5.0, 5.001])) == 2
    assert argbest(torch.tensor([-5.000001, -5.0])) == 0
    assert argbest(torch.tensor([-torch.inf, -torch.inf])) == 0
    assert argbest(torch.tensor([1.0, torch.inf, torch.inf])) == 1
    assert best_few(torch.tensor([1.0, 3.0, 3.000001, 2.0]), 3) == [1, 2, 3]
    assert best_few(torch.tensor([0.0, 1e-9, 0.5, 2e-9]), 3) == [2, 0, 1]
    assert best_few(torch.tensor([1.0]), 3) == [0]
    with pytest.raises(ValueError, match="NaN"):
        argbest(torch.tensor([1.0, torch.nan]))
    with pytest.raises(ValueError, match="no scores"):
        argbest(torch.tensor([]))


def test_case_ties_keep_the_first_candidate(fake: Any) -> None:
    """CLIP lower-cases, so upper and lower case tie: batching must not decide between them."""
    noisy = iter(range(10**6))
    scorer = fake(lambda prompt, text: float(len(text)) * (1 + 1e-8 * (next(noisy) % 7)))
    exact = fake(lambda prompt, text: float(len(text)))
    assert (
        Charmer(n_positions=2)(["a cat"], scorer)[0].perturbed == Charmer(n_positions=2)(["a cat"], exact)[0].perturbed
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_no_prompts_are_no_results(name: str) -> None:
    encoder = load_text_encoder("world:original")
    assert attack_from_name(name)([], Scorer(encoder)) == []
