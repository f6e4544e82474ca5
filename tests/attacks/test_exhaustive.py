"""The exhaustive search over two edits against every text that there is."""

from __future__ import annotations

from typing import Any

import pytest

from leaf_diffusion.attacks import Charmer, Exhaustive
from leaf_diffusion.evaluation.options import check_edits
from leaf_diffusion.scoring import Drift, Scorer
from leaf_diffusion.text import Constraint, NoNewWords, PublishedNoNewWords, neighbours
from tests import tiny
from tests.attacks.test_beam import rugged


def within_two(prompt: str, alphabet: str) -> set[str]:
    once = {prompt, *neighbours(prompt, alphabet).texts()}
    return {other for middle in once for other in neighbours(middle, alphabet).texts()} | once


@pytest.mark.parametrize(
    "rule", [None, NoNewWords(), PublishedNoNewWords()], ids=lambda rule: getattr(rule, "name", "none")
)
def test_two_edits_are_the_best_of_all_texts(fake: Any, rule: Constraint | None) -> None:
    alphabet, prompts = "te x", ["a cat", "hat", "猫 oo"]
    scorer = fake(rugged)
    found = Exhaustive(alphabet=alphabet)(prompts, scorer, k=2, constraint=rule)
    for prompt, result, seen in zip(prompts, found, scorer.bound[0].seen, strict=True):
        fits = {text for text in within_two(prompt, alphabet) if rule is None or rule.holds(prompt, text)} - {prompt}
        assert len(seen) == len(set(seen)) == result.queries and set(seen) == fits
        assert result.perturbed == max([prompt, *fits], key=lambda text: rugged(prompt, text))
        assert result.exact
    singles = Exhaustive(alphabet=alphabet).path(prompts, fake(rugged), (1, 2), constraint=rule)
    assert singles[2] == found and all(a.score <= b.score for a, b in zip(singles[1], found, strict=True))


def test_what_lies_between_need_not_be_allowed(fake: Any) -> None:
    rule = NoNewWords(frozenset({"cat", "cot", "cats"}))
    alone = fake(lambda _, text: float(text == "cots"))
    assert Exhaustive(alphabet="os")(["cat"], alone, k=2, constraint=rule)[0].perturbed == "cots"
    # edit by edit there is no way: "cot" and "cats" are words that were not there
    assert Charmer(n_positions=99, beam=99, alphabet="os")(["cat"], alone, k=2, constraint=rule)[0].perturbed == "cat"


def test_the_published_rule_is_taken_as_the_final_text_tells_it(fake: Any) -> None:
    rule = PublishedNoNewWords(frozenset({"red", "cat"}))
    # one word fewer in two edits: no step but one makes the set smaller, yet the text is one that holds
    target = fake(lambda _, text: float(text == "rexd caxt"))
    assert Exhaustive(alphabet="x")(["red cat"], target, k=2, constraint=rule)[0].perturbed == "rexd caxt"
    once = fake(lambda _, text: float(text == "red caxxt"))
    assert Exhaustive(alphabet="x")(["red cat"], once, k=2, constraint=rule)[0].perturbed == "red caxxt"
    assert Charmer(n_positions=99, alphabet="x")(["red cat"], once, k=2, constraint=rule)[0].perturbed != "red caxxt"


def test_the_cost_is_said_and_has_to_be_allowed(fake: Any) -> None:
    prompt = "a photo of a red cat"
    about = Exhaustive().most_queries(prompt, 2)
    assert about == 3875 + 3875**2 // 2 and Exhaustive().most_queries(prompt, 1) == 3875 == len(neighbours(prompt))
    said = r"k=2 makes about 7,511,687 texts of 'a photo of a red cat', which take 0:12:31 at 10,000 a second"
    scorer = fake()
    with pytest.raises(ValueError, match=said) as refused:
        Exhaustive()([prompt, "a cat"], scorer, k=2)
    assert not scorer.bound and f"exhaustive:max_queries={about}" in str(refused.value)
    with pytest.raises(ValueError, match="--attack exhaustive: k=2 makes about"):
        check_edits((1, 2), Exhaustive(), [prompt])
    check_edits((1, 2), Exhaustive(max_queries=about), [prompt])
    check_edits((1,), Exhaustive(max_queries=1), [prompt])
    with pytest.raises(ValueError, match="takes k=2 at most"):
        check_edits((3,), Exhaustive())
    # the estimate is near what there is
    small = sum(1 for _ in within_two("a red cat", "xyz ")) - 1
    assert small <= Exhaustive(alphabet="xyz ").most_queries("a red cat", 2) <= 1.3 * small
    assert "max_queries" not in Exhaustive().settings()


def test_the_first_flip_ends_two_edits(fake: Any) -> None:
    prompt, alphabet = "a red cat", "xyz"
    everything = len(within_two(prompt, alphabet)) - 1
    scores = sorted(rugged(prompt, text) for text in within_two(prompt, alphabet))
    for place in (-20, -400):
        found = Exhaustive(alphabet=alphabet)([prompt, "猫"], fake(rugged, scores[place]), k=2)
        assert found[0].success and found[0].score > scores[place] and found[0].queries < everything
    held = Exhaustive(alphabet=alphabet)([prompt], fake(rugged, scores[-1] + 1e-4), k=2)[0]
    assert (held.success, held.queries, held.score) == (False, everything, pytest.approx(scores[-1]))


def test_on_an_encoder_it_is_the_largest_drift() -> None:
    changes: tiny.Changes = {**tiny.WIDER, "initializer_factor": 8.0}
    encoder = tiny.encoder(**changes)
    prompt, alphabet = "a hat", "eo 1"
    (result,) = Exhaustive(alphabet=alphabet)([prompt], Scorer(encoder, max_bytes=100_000), k=2)
    texts = sorted(within_two(prompt, alphabet))
    clean, moved = (encoder.features(encoder.tokenize(some)) for some in ([prompt], texts))
    drifts = (moved - clean).square().sum(-1)
    assert result.score == pytest.approx(float(drifts.max()), rel=1e-4)
    screened = Scorer(encoder, Drift("l2"), precision="screen")
    assert result.exact and not Exhaustive(alphabet=alphabet)([prompt], screened, k=2)[0].exact
