"""What holds for every attack: limits, constraint, never below clean, independence of the batch, clear errors."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaf_diffusion.attacks import (
    ATTACKS,
    Attack,
    Charmer,
    ExactOrBeam,
    Exhaustive,
    Genetic,
    LeafAttack,
    RandomTypos,
    attack_from_name,
    attack_from_text,
    kind_of,
)
from leaf_diffusion.attacks.base import Problem
from leaf_diffusion.text import NoNewWords, PublishedNoNewWords, distance
from leaf_diffusion.text.decoding import shows

GENETIC = Genetic(population=6, generations=3)
BEAM = ExactOrBeam(exact_up_to=6, n_positions=2, beam=2)
FAST: list[Attack] = [Charmer(n_positions=3), LeafAttack(rho=10), Exhaustive(), GENETIC, BEAM, RandomTypos()]
OPTIMISING = FAST[:4]
CONSTRAINTS = [None, NoNewWords(), PublishedNoNewWords(), NoNewWords() & PublishedNoNewWords()]
PROMPTS = [
    "a red umbrella on a beach",
    "naïve cafe\u0301",
    "猫が好き",
    "a 🐈‍⬛ cat",
    '"a cat\'s hat"',
    "a",
    "_ _",
    "x" * 90,
]
PROMPT = st.one_of(
    st.sampled_from(PROMPTS[:7]), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
).filter(shows)


def ids(attack: Any) -> str:
    return getattr(attack, "name", None) or "no constraint"


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=ids)
@pytest.mark.parametrize(("attack", "k"), [(a, k) for a in FAST for k in (0, 1, 3) if k < 3 or a is not FAST[2]])
def test_limits_hold_and_results_are_measured(fake: Any, attack: Attack, constraint: Any, k: int) -> None:
    scorer = fake()
    prompts = PROMPTS[:-1] if isinstance(attack, Exhaustive) else PROMPTS
    results = attack(prompts, scorer, k=k, constraint=constraint, seed=3)
    for prompt, result in zip(prompts, results, strict=True):
        assert result.original == prompt
        assert result.distance == distance(prompt, result.perturbed) <= k
        assert constraint is None or constraint.holds(prompt, result.perturbed)
        assert result.score == pytest.approx(scorer.rule(prompt, result.perturbed), rel=1e-5)
        assert result.clean_score == 0
        assert result.success is None
        assert result.token_ids == scorer.encoder.tokenize([result.perturbed])[0]
        assert result.truncated == (len(result.perturbed) > 77)
        if k == 0:
            assert (result.perturbed, result.queries) == (prompt, 0)
        elif attack in OPTIMISING and constraint is None:
            assert result.score > 0
    assert results[-1].truncated == (len(prompts[-1]) > 77)


@settings(max_examples=15, deadline=None)
@given(st.lists(PROMPT, min_size=1, max_size=4), st.integers(0, 5), st.sampled_from(CONSTRAINTS), st.sampled_from(FAST))
def test_results_do_not_depend_on_the_batch(
    fake: Any, prompts: list[str], seed: int, constraint: Any, attack: Attack
) -> None:
    together = attack(prompts, fake(), constraint=constraint, seed=seed)
    alone = [attack([prompt], fake(), constraint=constraint, seed=seed)[0] for prompt in prompts]
    backwards = attack(prompts[::-1], fake(), constraint=constraint, seed=seed)[::-1]
    assert together == alone == backwards


@settings(max_examples=15, deadline=None)
@given(PROMPT, st.integers(1, 2), st.sampled_from(CONSTRAINTS), st.sampled_from(OPTIMISING), st.floats(-3, 3))
def test_an_optimising_attack_never_ends_below_clean(
    fake: Any, prompt: str, k: int, constraint: Any, attack: Attack, slope: float
) -> None:
    scorer = fake(lambda original, text: slope * len(text) - (text != original))  # the clean prompt is often the best
    result = attack([prompt], scorer, k=1 if isinstance(attack, Exhaustive) else k, constraint=constraint)[0]
    assert result.score >= result.clean_score
    if abs(slope) < 0.5:
        assert result.perturbed == prompt


@pytest.mark.parametrize("attack", [Charmer(n_positions=3), LeafAttack(rho=96), Exhaustive()], ids=ids)
def test_a_solved_prompt_is_asked_no_further(fake: Any, attack: Attack) -> None:
    def rule(original: str, text: str) -> float:
        return 5.0 if "solved" in original else text.count(" ") - original.count(" ")

    scorer = fake(rule, threshold=1.5)
    k = 1 if isinstance(attack, Exhaustive) else 4
    solved, others = attack(["solved already", "a cat"], scorer, k=k)
    assert (solved.queries, solved.perturbed, solved.success) == (0, "solved already", True)
    assert others.success is (k > 1)
    assert others.distance == (2 if k > 1 else 1)
    assert scorer.bound[0].seen[0] == []


def test_seeds_matter_only_to_random_attacks(fake: Any) -> None:
    for attack in FAST:
        runs = {tuple(r.perturbed for r in attack(PROMPTS[:6], fake(), seed=seed)) for seed in (0, 0, 1, 2)}
        assert len(runs) == (3 if isinstance(attack, LeafAttack | Genetic | RandomTypos) else 1)


@pytest.mark.parametrize("attack", FAST, ids=ids)
def test_wrong_calls_say_what_is_wrong(fake: Any, attack: Attack) -> None:
    scorer = fake()
    assert attack([], scorer) == []
    with pytest.raises(TypeError, match="one string"):
        attack("a cat", scorer)
    with pytest.raises(TypeError, match="prompt 1 is not a string but int"):
        attack(["a cat", 3], scorer)  # type: ignore[list-item]
    for blank in ("", "  ", "\n\u2003"):
        with pytest.raises(ValueError, match="prompt 1 is empty"):
            attack(["a cat", blank], scorer)
    with pytest.raises(ValueError, match="prompt 0 holds half a surrogate"):
        attack(["a \udc80 cat"], scorer)
    with pytest.raises(ValueError, match="negative"):
        attack(["a cat"], scorer, k=-1)
    with pytest.raises(TypeError, match="whole number"):
        attack(["a cat"], scorer, k=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", FAST, ids=ids)
def test_progress_rises_to_the_total(fake: Any, attack: Attack) -> None:
    steps: list[tuple[int, int]] = []
    attack(["a cat", "a hat", "a bat"], fake(), on_step=lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1]
    assert steps == sorted(steps)
    assert len({total for _, total in steps}) == 1


class Returns(Attack):
    """An attack that returns what it is told to."""

    name = "returns"

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)

    def run(self, problem: Problem) -> Any:
        return self.outcomes


def test_results_are_verified_from_outside(fake: Any) -> None:
    with pytest.raises(RuntimeError, match=r"prompt 1 by 2 edits where 1"):
        Returns("a cat", "a hatxx")(["a cat", "a hat"], fake())
    with pytest.raises(RuntimeError, match=r"constraint no-new-words on prompt 0"):
        Returns("a bat")(["a cat"], fake(), constraint=NoNewWords())
    with pytest.raises(RuntimeError, match="1 results for 2 prompts"):
        Returns("a cat")(["a cat", "a hat"], fake())


def test_token_rows_are_outcomes_too(fake: Any) -> None:
    row = [ord(c) for c in "a bat"]
    result = Returns(row)(["a cat"], fake())[0]
    assert (result.perturbed, result.token_ids, result.distance) == ("a bat", row, 1)
    assert result.score == pytest.approx(fake().rule("a cat", "a bat"), rel=1e-5)
    with pytest.raises(RuntimeError, match="by 1 edits where 0"):
        Returns(row)(["a cat"], fake(), k=0)


def test_attacks_by_name() -> None:
    assert attack_from_name("charmer", n_positions=5) == Charmer(n_positions=5)
    assert attack_from_name("leaf", rho=20) == LeafAttack(rho=20)
    first = [ExactOrBeam, Charmer, LeafAttack, Exhaustive, RandomTypos]
    assert [type(attack_from_name(name)) for name in ATTACKS][:5] == first
    with pytest.raises(ValueError, match="exact-or-beam, charmer, leaf, exhaustive, random-typos"):
        attack_from_name("charmr")
    with pytest.raises(
        ValueError, match="no parameter rho: it takes n_positions, beam, probe, alphabet, batch_prompts"
    ):
        attack_from_name("charmer", rho=3)
    with pytest.raises(ValueError, match="at least 1"):
        attack_from_name("leaf", rho=0)
    with pytest.raises(ValueError, match="at least 1"):
        Charmer(n_positions=0)


def test_parameters_stand_behind_a_colon() -> None:
    assert attack_from_text("words:similarity=1,n-words=3").settings()["similarity"] == 1.0
    assert attack_from_text("genetic:population=7") == Genetic(population=7)
    with pytest.raises(ValueError, match="similarity takes float, not 'near'"):
        attack_from_text("words:similarity=near")
    with pytest.raises(ValueError, match=r"population takes int, not '2\.5'"):
        attack_from_text("genetic:population=2.5")


def test_what_k_counts_follows_from_a_label() -> None:
    labels = ("charmer", "words", "tokens", "worst-ocr", "ocr", "textfooler", None)
    units = ["character", "word", "token", "character", "character", "character", "character"]
    assert [kind_of(label).unit for label in labels] == units
    assert kind_of("worst-ocr").distance_per_edit == 2


def test_random_typos_are_spread_and_spend_k(fake: Any) -> None:
    prompts = [f"a red umbrella number {i}" for i in range(200)]
    results = RandomTypos()(prompts, fake(), k=2)
    assert np.mean([r.distance for r in results]) > 1.8
    assert all(r.queries == 0 for r in results)
    first = [
        next(i for i, (a, b) in enumerate(zip(r.original, r.perturbed + "\0" * 3, strict=False)) if a != b)
        for r in results
    ]
    assert len(set(first)) > 10


def test_random_typos_find_the_only_allowed_edit(fake: Any) -> None:
    class Only(NoNewWords):
        def allows(self, original: str, current: str, candidates: Any) -> Any:
            return np.array([text == "a ca~t" for text in candidates.texts()], dtype=bool)

    assert RandomTypos()(["a cat"], fake(), constraint=Only())[0].perturbed == "a ca~t"
    assert RandomTypos()(["b cat"], fake(), constraint=None, k=0)[0].perturbed == "b cat"
