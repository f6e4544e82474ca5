"""The attacks on real CLIP text towers (tiny, random weights, the real tokenizer) through the real scorers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from leaf_diffusion.attacks import (
    ATTACKS,
    NOISE,
    Attack,
    AttackResult,
    Charmer,
    Exhaustive,
    LeafAttack,
    RandomTypos,
    attack_from_name,
)
from leaf_diffusion.attacks.base import Outcome, Problem
from leaf_diffusion.attacks.noise import WORST
from leaf_diffusion.encoders import HFTextEncoder
from leaf_diffusion.encoders.defences import Speller
from leaf_diffusion.scoring import Drift, Margin, MeanScorer, Scorer, Toward
from leaf_diffusion.text import NoNewWords, neighbours
from tests import tiny

PROMPTS = ["a red umbrella", "two cats on a mat", "naïve café", 'a "quoted" 猫']
QUICK: dict[str, dict[str, object]] = {
    "charmer": {"n_positions": 3}, "leaf": {"rho": 12}, "tokens": {"top_n": 16}, "exhaustive": {"alphabet": "xe 1"},
    "exact-or-beam": {"exact_up_to": 12, "n_positions": 2, "beam": 2},
    "genetic": {"population": 12, "generations": 4}, "words": {"similarity": -1},
}  # fmt: skip
"""Parameters for a test; an attack that is not named here runs with its defaults."""
WORDS = "red blue umbrella cats dogs mat rug café hat house quoted"
Tower = Callable[..., HFTextEncoder]


@pytest.fixture(scope="module")
def tower() -> Tower:
    def make(seed: int = 0, scale: float = 1.0, defence: Any = None) -> HFTextEncoder:
        sizes = tiny.WIDER | {"initializer_factor": 8.0}
        made = tiny.encoder(seed, name=f"tiny-{seed}", defence=defence, **sizes)
        made.module.requires_grad_(False).text_projection.weight.mul_(scale)
        return made

    return make


def texts(results: list[AttackResult]) -> list[str]:
    return [result.perturbed for result in results]


def names() -> list[str]:
    """Every name that `attack_from_name` accepts."""
    return [*ATTACKS, *(WORST + name for name in NOISE)]


def check_contract(attack: Attack, encoder: HFTextEncoder) -> None:
    """What every attack has to keep: its limits, a measured score, results of the prompt and the seed alone."""
    prompts, k = (PROMPTS, 2) if attack.largest_k is None else (["a hat", "猫 on"], attack.largest_k)
    rule, steps = None if attack.unit == "word" else NoNewWords(), list[tuple[int, int]]()
    scorer = Scorer(encoder)
    results = attack(prompts, scorer, k=k, constraint=rule, seed=1, on_step=lambda *step: steps.append(step))
    for prompt, result in zip(prompts, results, strict=True):
        assert result.original == prompt
        assert result.distance <= k * attack.distance_per_edit
        assert rule is None or rule.holds(prompt, result.perturbed)
        assert result.token_ids == encoder.tokenize([result.perturbed])[0]
        clean, moved = (encoder.features([row])[0] for row in (encoder.tokenize([prompt])[0], result.token_ids))
        assert result.score == pytest.approx(float((moved - clean).square().sum()), rel=1e-4, abs=1e-6)
        assert result.clean_score == pytest.approx(0, abs=1e-6)
        assert (result.success, result.truncated) == (None, False)
    assert any(result.perturbed != result.original for result in results)
    assert steps and steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1] and len({total for _, total in steps}) == 1

    small = attack(prompts, Scorer(encoder, max_bytes=200_000), k=k, constraint=rule, seed=1)
    alone = [attack([prompt], scorer, k=k, constraint=rule, seed=1)[0] for prompt in reversed(prompts)][::-1]
    assert texts(results) == texts(small) == texts(alone)
    assert [r.queries for r in results] == [r.queries for r in alone]
    assert [r.score for r in results] == pytest.approx([r.score for r in alone], rel=1e-4, abs=1e-6)
    along = attack.path(prompts, scorer, (0, k), constraint=rule, seed=1)
    assert (texts(along[0]), texts(along[k])) == (prompts, texts(results))


@pytest.mark.parametrize("name", names())
def test_every_attack_keeps_the_contract(tower: Tower, name: str, tmp_path: Path) -> None:
    params = dict(QUICK.get(name, {}))
    if name == "words":  # thousands of words would take seconds
        (tmp_path / "words.txt").write_text("\n".join(WORDS.split()))
        params["vocabulary"] = str(tmp_path / "words.txt")
    check_contract(attack_from_name(name, **params), tower())


@dataclass(frozen=True, kw_only=True)
class Broken(Attack):
    """An attack that breaks the contract in one way."""

    name: ClassVar[str] = "broken"
    way: str = "fine"
    calls: ClassVar[Iterator[int]] = count()

    def run(self, problem: Problem) -> list[Outcome]:
        outcomes = dict(enumerate(problem.prompts))
        for i, prompt in enumerate(problem.prompts):
            letter = {"batch": str(len(problem.prompts)), "memory": chr(ord("a") + next(self.calls) % 26)}.get(
                self.way, "~"
            )
            if problem.k and self.way != "idle":
                outcomes[i] = {"far": "~~~" + prompt, "word": "q" + prompt}.get(self.way, letter + prompt)
        problem.tell(1 if self.way == "progress" else 2, 2)
        return list(outcomes.values())


@pytest.mark.parametrize("way", ["far", "word", "batch", "memory", "progress", "idle"])
def test_a_broken_attack_that_is_registered_is_caught(tower: Tower, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTACKS, "broken", Broken)
    assert "broken" in names()
    check_contract(attack_from_name("broken"), tower())
    with pytest.raises((AssertionError, RuntimeError)):
        check_contract(attack_from_name("broken", way=way), tower())


@pytest.mark.parametrize("drift", [Drift("l2"), Drift("cosine")], ids=lambda drift: drift.kind)
def test_exhaustive_is_at_least_charmer_is_at_least_random(tower: Tower, drift: Drift) -> None:
    scorer = Scorer(tower(), drift)
    prompts = ["a red hat", "naïve 猫"]
    exact = Exhaustive()(prompts, scorer, constraint=NoNewWords())
    charmer = Charmer(n_positions=8)(prompts, scorer, constraint=NoNewWords())
    typos = RandomTypos()(prompts, scorer, constraint=NoNewWords())
    for best, good, plain in zip(exact, charmer, typos, strict=True):
        assert best.score >= good.score * (1 - 1e-5)
        assert good.score > plain.score
        assert good.queries < best.queries


@pytest.mark.parametrize("max_bytes", [1, 10_000, 80_000, 1 << 29])
def test_exhaustive_is_the_maximum_over_every_neighbour(tower: Tower, max_bytes: int) -> None:
    encoder = tower()
    result = Exhaustive()(["at"], Scorer(encoder, max_bytes=max_bytes))[0]
    clean, *moved = (encoder.features([row]) for row in encoder.tokenize(["at", *neighbours("at").texts()]))
    drifts = [float((features - clean).square().sum()) for features in moved]
    assert result.score == pytest.approx(max(drifts), rel=1e-4)


def test_a_margin_stops_once_the_label_flips(tower: Tower) -> None:
    encoder = tower()
    clean = encoder.features(encoder.tokenize(PROMPTS))
    classes = torch.cat([clean, encoder.features(encoder.tokenize(["a rod umbrella", "a blue sea", "xyz"]))])
    margin = Scorer(encoder, Margin(classes, [0, 1, 2, 0]))  # the last label is wrong from the start
    results = Charmer(n_positions=4)(PROMPTS, margin, k=3)
    drift = Charmer(n_positions=4)(PROMPTS, Scorer(encoder), k=3)
    assert (results[3].perturbed, results[3].queries, results[3].success) == (PROMPTS[3], 0, True)
    assert all(result.clean_score < 0 for result in results[:3])
    assert all(result.success is (result.score > 0) for result in results)
    early = [i for i in range(3) if results[i].success and results[i].distance < 3]
    assert early
    assert all(results[i].queries < drift[i].queries for i in early)
    path = Charmer(n_positions=4).path(PROMPTS, margin, (1, 3))
    assert (texts(path[3]), [r.queries for r in path[3]]) == (texts(results), [r.queries for r in results])


def test_toward_a_target_gets_closer(tower: Tower) -> None:
    for attack in (Charmer(n_positions=4), LeafAttack(rho=20)):
        results = attack(PROMPTS, Scorer(tower(), Toward(["a dog in the snow"] * len(PROMPTS))), k=2)
        assert len(results) == len(PROMPTS)
        assert all(result.score > result.clean_score for result in results)
        assert all(result.success is None for result in results)


def test_sentences_side_by_side_are_the_same_as_one_at_a_time(tower: Tower) -> None:
    scorer = Scorer(tower())
    one, many = (Charmer(n_positions=3, batch_prompts=n)(PROMPTS, scorer) for n in (1, 16))
    assert texts(one) == texts(many)


def test_two_towers_of_different_norm(tower: Tower) -> None:
    small, large = tower(0), tower(1, scale=30.0)
    both = MeanScorer([(Scorer(small), 1.0), (Scorer(large), 1.0)])
    results = Charmer(n_positions=4)(PROMPTS, both, constraint=NoNewWords())
    rescaled = MeanScorer([(Scorer(small), 1.0), (Scorer(tower(1)), 1.0)])
    assert texts(results) == texts(Charmer(n_positions=4)(PROMPTS, rescaled, constraint=NoNewWords()))
    for prompt, result in zip(PROMPTS, results, strict=True):
        relative = []
        for encoder in (small, large):
            clean, moved = (encoder.features(encoder.tokenize([text])) for text in (prompt, result.perturbed))
            relative.append(float((moved - clean).square().sum() / clean.square().sum()))
        assert result.score == pytest.approx(sum(relative) / 2, rel=1e-3)
        assert result.success is None


def test_a_spelling_defence_is_part_of_the_encoder(tower: Tower) -> None:
    prompt = "red umbrella"
    guarded = tower(defence=Speller(["red", "umbrella"]))
    result = Charmer(n_positions=6)([prompt], Scorer(guarded))[0]
    bare = Charmer(n_positions=6)([prompt], Scorer(tower()))[0]
    assert result.token_ids == guarded.tokenize(guarded.preprocess([result.perturbed]))[0]
    assert 0 < result.score <= bare.score


def test_a_perfect_defence_leaves_the_clean_prompt(tower: Tower) -> None:
    """Rounding is no gain: where every candidate reads as the clean prompt, the attack returns it, in any batch."""

    class Perfect:
        name = fingerprint = "perfect"

        def __call__(self, given: Any) -> list[str]:
            return ["red umbrella" for _ in given]

    for drift in (Drift("l2"), Drift("cosine")):
        for size in (50, 4096):
            scorer = Scorer(tower(defence=Perfect()), drift, max_bytes=size)
            for attack in (Charmer(n_positions=3), LeafAttack(rho=9)):
                assert texts(attack(["red umbrella", "a hat"], scorer, k=2)) == ["red umbrella", "a hat"]


def test_a_prompt_beyond_the_context_is_reported(tower: Tower) -> None:
    long = "umbrella " * 90
    results = Charmer(n_positions=2)([long, "a cat"], Scorer(tower()))
    assert [result.truncated for result in results] == [True, False]
    assert len(results[0].token_ids) == 77
    assert results[0].score > 0
