"""The default attack: Exhaustive on short texts, Charmer with a beam on long ones, each prompt on its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from leaf_diffusion.attacks import AttackResult, Charmer, ExactOrBeam, Exhaustive
from leaf_diffusion.evaluation.attack_sets import attack_summary, attacked_text
from leaf_diffusion.evaluation.options import AttackOptions
from leaf_diffusion.evaluation.t2i.summarise import attack_counts
from leaf_diffusion.runs.records import AttackRecord
from leaf_diffusion.scoring import Drift, Margin, MeanScorer, Scorer
from leaf_diffusion.text import NoNewWords
from tests import tiny
from tests.attacks.test_beam import plain_beam, rugged

MIXED = ["a cat", "two red hats on a mat", "naïve 🐈", "a long sentence about a beach"]
SMALL = ExactOrBeam(exact_up_to=8, n_positions=3, beam=2, probe=" x")
BEAM = Charmer(n_positions=3, beam=2, probe=" x")


def plainly(prompts: list[str], scorer: Any, **options: Any) -> list[AttackResult]:
    """One edit: what each prompt's own search returns."""
    return [(Exhaustive() if len(prompt) <= 8 else BEAM)([prompt], scorer, **options)[0] for prompt in prompts]


def test_the_default_is_this_attack_with_the_measured_beam() -> None:
    attack = AttackOptions().attack
    assert attack == ExactOrBeam()
    assert isinstance(attack, ExactOrBeam)
    assert (attack.exact_up_to, attack.beam, attack.n_positions, attack.probe) == (80, 5, 10, " xe1-")
    assert Charmer() == Charmer(n_positions=20, beam=1, probe=" ")  # the paper's


@pytest.mark.parametrize("rule", [None, NoNewWords()])
def test_one_edit_is_exhaustive_or_the_beam_by_length(fake: Any, rule: NoNewWords | None) -> None:
    found = SMALL(MIXED, fake(), constraint=rule)
    assert found == plainly(MIXED, fake(), constraint=rule)
    assert [result.exact for result in found] == [True, False, True, False]


def test_one_edit_on_an_encoder_and_with_an_early_end() -> None:
    changes: tiny.Changes = {**tiny.WIDER, "initializer_factor": 6.0}
    encoder, texts, rule = tiny.encoder(**changes), ["a hat", "a red cat on a mat", "the bell"], NoNewWords()
    with torch.inference_mode():
        classes = normalize(encoder.features(encoder.tokenize(texts)), dim=-1)
    drifts = [Scorer(encoder, Drift("l2"))] * 4
    margins = [Scorer(encoder, Margin(classes, labels)) for labels in (range(3), [0], [1], [2])]
    for together, *alone in (drifts, margins):
        for i, result in enumerate(SMALL(texts, together, constraint=rule)):
            (wanted,) = plainly([texts[i]], alone[i], constraint=rule)
            assert replace(result, score=0, clean_score=0) == replace(wanted, score=0, clean_score=0)
            assert result.score == pytest.approx(wanted.score, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("width", [1, 3])
def test_further_edits_go_on_from_the_best_of_the_exact_round(fake: Any, width: int) -> None:
    prompts, alphabet = ["ab", "a cat", "猫!"], "xy z"
    attack = ExactOrBeam(n_positions=99, beam=width, probe=" ", alphabet=alphabet)
    path = attack.path(prompts, fake(rugged), (1, 2, 3))
    for k, results in path.items():
        assert [r.perturbed for r in results] == [plain_beam(prompt, alphabet, width, k)[k] for prompt in prompts]
        assert results == attack(prompts, fake(rugged), k=k)
        assert [r.exact for r in results] == [k == 1] * 3
    # with few positions it is as good as, and here better than, going on from what the beam found
    few = replace(SMALL, exact_up_to=80)
    for result, other in zip(few(MIXED, fake(rugged), k=2), BEAM(MIXED, fake(rugged), k=2), strict=True):
        assert result.score >= other.score


def test_nothing_of_the_first_round_is_searched_again(fake: Any) -> None:
    scorer = fake()
    path = SMALL.path(MIXED, scorer, (1, 2))
    assert len(scorer.bound) == 3  # one search, and one measure of the results a k
    assert [r.queries for r in path[2]] == list(map(len, scorer.bound[0].seen))
    for one, two, seen in zip(path[1], path[2], scorer.bound[0].seen, strict=True):
        assert two.queries > one.queries
        assert two.queries <= SMALL.most_queries(two.original, 2)
        if one.exact:
            assert len(set(seen[: one.queries])) == one.queries == ExactOrBeam().most_queries(one.original, 1)


def test_results_do_not_depend_on_the_batch(fake: Any) -> None:
    wanted = SMALL.path(MIXED, fake(), (0, 1, 2), constraint=NoNewWords())
    turned = replace(SMALL, batch_prompts=2).path(MIXED[::-1], fake(), (0, 1, 2), constraint=NoNewWords())
    assert {k: results[::-1] for k, results in turned.items()} == wanted
    assert wanted[2] == [SMALL([prompt], fake(), k=2, constraint=NoNewWords())[0] for prompt in MIXED]


def test_screened_scores_are_not_exact() -> None:
    encoder = tiny.encoder(**tiny.WIDER)
    for precision, exact in (("fp32", True), ("screen", False)):
        scorer = Scorer(encoder, precision=precision)  # type: ignore[arg-type]
        assert SMALL(["a hat"], scorer)[0].exact == exact
        assert SMALL(["a hat"], MeanScorer([(Scorer(encoder), 1.0), (scorer, 1.0)]))[0].exact == exact


def test_records_and_the_terminal_say_what_is_exact(fake: Any) -> None:
    one, two = SMALL.path(MIXED, fake(), (1, 2)).values()
    record = attacked_text(one[0], "original", 1, SMALL.label, "none")
    assert (record.attack, record.exact) == ("exact-or-beam", True)
    assert not attacked_text(one[1], "original", 1, SMALL.label, "none").exact
    texts = [
        attacked_text(result, "leaf", k, SMALL.label, "none") for k, found in ((1, one), (2, two)) for result in found
    ]
    records = [AttackRecord(id="a", prompt_id="p", **text.model_dump()) for text in texts]
    assert [(each.k, each.exact, each.n) for each in attack_counts(records)] == [(1, 2, 4), (2, 0, 4)]
    said = {1: attack_summary([one[0]]), 2: attack_summary(one), 3: attack_summary(two)}
    assert ["truncated, exact for 1\nUnder attack: exact" in said[1], "truncated, exact for 2\n" in said[2]] == [
        True,
        True,
    ]
    assert all("an upper bound on robustness" in said[i] and "where “exact” is said" in said[2] for i in (2, 3))
