"""The plain scorer and the mean over towers."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Unpack

import numpy as np
import pytest
import torch

from leaf_diffusion.attacks.charmer import Charmer
from leaf_diffusion.encoders import HFTextEncoder, Hidden
from leaf_diffusion.encoders.base import Defence, Feature
from leaf_diffusion.encoders.defences import Speller
from leaf_diffusion.scoring import Drift, Margin, MeanScorer, Scorer, Toward
from leaf_diffusion.scoring.objectives import Goal
from leaf_diffusion.text.edits import Candidates, neighbours, random_edits
from leaf_diffusion.tokens.token_rows import TokenRows
from tests import tiny

PROMPTS = ["a red umbrella on a beach", "two cats, sleeping", "café 😀"]


def encoder(
    seed: int = 0, defence: Defence | None = None, gain: float = 1.0, **changes: Unpack[tiny.Changes]
) -> HFTextEncoder:
    made = tiny.encoder(seed, name=f"tower-{seed}", defence=defence, **changes)
    with torch.no_grad():
        made.module.text_projection.weight *= gain
    return made


ENCODER = encoder()


def some(n: int = 40) -> list[Candidates]:
    return [random_edits(prompt, n, np.random.default_rng(i)) for i, prompt in enumerate(PROMPTS)]


def one_by_one(goal: Goal, texts: list[str], feature: Feature = "projected") -> torch.Tensor:
    return torch.cat([goal(ENCODER.features(ENCODER.tokenize([text]), feature)) for text in texts]).detach()


@pytest.mark.parametrize("engine", ["plain", "prefix"])
@pytest.mark.parametrize("max_bytes", [1, 40_000, 1 << 29])
@pytest.mark.parametrize("feature", ["projected", "pooled", Hidden(), Hidden(-2, "all")])
def test_scores_are_those_of_one_candidate_at_a_time(
    max_bytes: int, engine: Literal["plain", "prefix"], feature: Feature
) -> None:
    objective = Drift("l2", feature=feature)
    candidates = some(10)
    scores = Scorer(ENCODER, objective, engine, max_bytes=max_bytes).bind(PROMPTS)(candidates)
    for goal, each, got in zip(objective.goals(ENCODER, PROMPTS), candidates, scores, strict=True):
        torch.testing.assert_close(got, one_by_one(goal, each.texts(), feature), rtol=1e-4, atol=1e-5)


def test_every_candidate_counts_the_last_one_too() -> None:
    """Public code loses the last of each batch; here the strongest candidate stands last."""
    texts = ["a red umbrella"] * 15 + ["zzz qqq xxx"]
    (scores,) = Scorer(ENCODER, max_bytes=8_000).bind(["a red umbrella"])([Candidates.from_texts(texts)])
    assert scores.shape == (16,)
    assert scores.argmax() == 15
    assert scores[:15].abs().max() < 1e-6


def test_duplicates_are_computed_once_and_counted_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[int]] = []
    features = ENCODER.features

    def watched(rows: Sequence[Sequence[int]], what: Feature) -> torch.Tensor:
        seen.extend(rows)
        return features(rows, what)

    bound = Scorer(ENCODER, engine="plain").bind(PROMPTS[:2])
    monkeypatch.setattr(ENCODER, "features", watched)
    same = Candidates.from_texts(["a cat", "A CAT", "a  cat", "a dog"])
    first, second = bound([same, same])
    assert len(seen) == 2
    assert bound.queries == [4, 4]
    assert first[0] == first[1] == first[2] != first[3]
    assert first[0] != second[0]


def test_prompts_that_are_tokenized_in_groups_score_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = [random_edits(PROMPTS[0], n, np.random.default_rng(n)) for n in (7, 0, 12, 3, 1)]
    for precision in ("fp32", "screen"):
        score = Scorer(ENCODER, precision=precision).bind([f"a cat {i}" for i in range(5)])
        together = score(candidates)
        monkeypatch.setattr("leaf_diffusion.scoring.prefix.TOGETHER", 10)
        apart = score(candidates)
        monkeypatch.undo()
        assert score.queries == [14, 0, 24, 6, 2]
        for one, other in zip(together, apart, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_finished_prompts_and_token_rows() -> None:
    bound = Scorer(ENCODER).bind(PROMPTS)
    rows = ENCODER.tokenize(["a cat", "a dog"])
    scores = bound([Candidates.none(), Candidates.from_tokens(rows), Candidates.from_texts(["x"])])
    assert [len(each) for each in scores] == [0, 2, 1]
    assert bound.queries == [0, 2, 1]
    texts = bound([Candidates.none(), Candidates.from_texts(["a cat", "a dog"]), Candidates.none()])[1]
    torch.testing.assert_close(scores[1], texts)
    assert [len(each) for each in bound([Candidates.none()] * 3)] == [0, 0, 0]


def test_clean_scores() -> None:
    assert Scorer(ENCODER).bind(PROMPTS).clean() == pytest.approx([0, 0, 0], abs=1e-6)
    anchored = Scorer(ENCODER, Drift("l2", anchor=encoder(1))).bind(PROMPTS)
    assert min(anchored.clean()) > 0.01
    assert anchored.queries == [0, 0, 0]
    toward = Scorer(ENCODER, Toward(PROMPTS)).bind(PROMPTS)
    assert toward.clean() == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize("defence", [None, Speller(["a", "red", "umbrella"])])
def test_the_engine_reads_the_clean_prompts_as_the_tokenizer_does(defence: Speller | None) -> None:
    prompts = [
        "A Red  umbrlla",
        "",
        "a",
        "café 😀",
        "fish &amp; chips",
        "<|endoftext|> a",
        "red " * 100,
        "it's 4k, 'tis",
    ]
    mine, anchor = encoder(defence=defence), Drift("l2", anchor=encoder(1))
    fast, slow = (Scorer(mine, anchor, engine).bind(prompts).clean() for engine in ("prefix", "plain"))
    assert fast == pytest.approx(slow, rel=1e-5)
    assert len({round(score, 6) for score in fast}) > 5


def test_the_defence_reads_the_candidates_first() -> None:
    speller = Speller(["a", "red", "umbrella"])
    bound = Scorer(encoder(defence=speller)).bind(["a red umbrella"])
    (scores,) = bound([Candidates.from_texts(["a red umbrlla", "a blue umbrella"])])
    assert scores[0] == pytest.approx(0, abs=1e-6)
    assert scores[1] > 0.01


def test_gradient_is_that_of_a_one_hot() -> None:
    row = ENCODER.tokenize([PROMPTS[0]])[0]
    bound = Scorer(ENCODER, Toward(["a dog", "dogs", "cats"])).bind(PROMPTS)
    gradient = bound.gradient([row, row[:3] + row[-1:], row])[0]
    goal = bound.goals[0]
    one_hot = torch.nn.functional.one_hot(torch.tensor(row), 49408).float().requires_grad_()
    goal(ENCODER.features_from_embeddings((one_hot @ ENCODER.token_embedding())[None], [row])).sum().backward()
    torch.testing.assert_close(gradient, one_hot.grad, rtol=1e-4, atol=1e-6)
    # and a step along it moves the score by what it promises
    direction = torch.zeros(len(row), 49408)
    direction[2, 2368], direction[2, row[2]] = 1e-2, -1e-2
    with torch.no_grad():
        ends = [one_hot + sign * direction for sign in (1, -1)]
        up, down = (goal(ENCODER.features_from_embeddings((x @ ENCODER.token_embedding())[None], [row])) for x in ends)
    assert float(up - down) == pytest.approx(2 * float((gradient * direction).sum()), rel=0.02)


@pytest.mark.parametrize("feature", ["pooled", Hidden(), Hidden(-1, "all")])
def test_gradient_of_other_features(feature: Feature) -> None:
    rows = ENCODER.tokenize(PROMPTS)
    bound = Scorer(ENCODER, Drift("l2", anchor=encoder(1), feature=feature)).bind(PROMPTS)
    gradients = bound.gradient(rows)
    assert [tuple(each.shape) for each in gradients] == [(len(row), 49408) for row in rows]
    assert all(each[1:].abs().sum() > 0 for each in gradients)


def test_margin_stops_an_attack_early() -> None:
    prompt = "a red umbrella"
    classes = ENCODER.features(ENCODER.tokenize([prompt, "a rd umbrella"])).detach()
    scorer = Scorer(ENCODER, Margin(classes, [0]))
    result = Charmer(n_positions=5)([prompt], scorer, k=3)[0]
    assert result.clean_score < 0 < result.score
    assert result.success is True
    assert result.distance == 1  # solved in the first round, the other two were not asked
    assert result.queries < Charmer(n_positions=5)([prompt], Scorer(ENCODER), k=3)[0].queries


def test_a_targeted_attack_nears_its_target() -> None:
    result = Charmer(n_positions=27)(["a rd umbrella"], Scorer(ENCODER, Toward(["a red umbrella"])), k=1)[0]
    assert result.score == pytest.approx(1, abs=1e-5)
    assert result.clean_score < result.score


def test_towers_of_different_norm_weigh_alike() -> None:
    small, large = encoder(0), encoder(1, gain=100.0)
    bound = [Scorer(tower).bind(PROMPTS) for tower in (small, large)]
    candidates = some()
    a, b = (each(candidates) for each in bound)
    norms = [tower.features(tower.tokenize(PROMPTS)).square().sum(1).tolist() for tower in (small, large)]
    mean = MeanScorer([(Scorer(small), 1), (Scorer(large), 3)]).bind(PROMPTS)
    for i, scores in enumerate(mean(candidates)):
        torch.testing.assert_close(scores, a[i] / norms[0][i] / 4 + 3 * b[i] / norms[1][i] / 4, rtol=1e-4, atol=1e-6)
    equal = MeanScorer([(Scorer(small), 1), (Scorer(large), 1)]).bind(PROMPTS)(candidates)
    unscaled = MeanScorer([(Scorer(small), 1), (Scorer(encoder(1)), 1)]).bind(PROMPTS)(candidates)
    for one, other in zip(equal, unscaled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)  # a tower's gain does not matter
    assert mean.queries == [40, 40, 40]
    assert mean.clean() == pytest.approx([0, 0, 0], abs=1e-5)
    assert not mean.solved(0, 1e9)


def test_towers_that_read_alike_share_the_tokenization(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, defended = encoder(0), encoder(1), encoder(1, defence=Speller(["a", "red", "umbrella"]))
    asked: list[HFTextEncoder] = []

    def watched(tower: HFTextEncoder) -> Callable[[Sequence[Candidates]], TokenRows]:
        read = tower.read_candidates

        def call(many: Sequence[Candidates]) -> TokenRows:
            asked.append(tower)
            return read(many)

        return call

    for tower in (first, second, defended):
        monkeypatch.setattr(tower, "read_candidates", watched(tower))
    candidates = some()
    mean = MeanScorer([(Scorer(first), 1), (Scorer(second), 1), (Scorer(defended), 1)]).bind(PROMPTS)
    mean(candidates)
    assert {id(tower) for tower in asked} == {id(first), id(defended)}
    assert mean.queries == [40, 40, 40]


def test_gradient_of_the_mean() -> None:
    rows = ENCODER.tokenize(PROMPTS)
    objective = Toward(["a dog", "dogs", "cats"])
    towers = [Scorer(ENCODER, objective), Scorer(encoder(1), objective)]
    got = MeanScorer([(tower, 1) for tower in towers]).bind(PROMPTS).gradient(rows)
    own = [tower.bind(PROMPTS).gradient(rows) for tower in towers]
    torch.testing.assert_close(got[0], (own[0][0] + own[1][0]) / 2)
    wider = Scorer(encoder(vocab_size=49500), objective)
    with pytest.raises(ValueError, match="needs one vocabulary, got tower-0: 49408, tower-0: 49500"):
        MeanScorer([(towers[0], 1), (wider, 1)]).bind(PROMPTS).gradient(rows)


def test_bad_arguments() -> None:
    unknown: Any = "fast"
    with pytest.raises(ValueError, match=r"unknown engine 'fast'; available: .*plain"):
        Scorer(ENCODER, engine=unknown)
    with pytest.raises(ValueError, match="max_bytes"):
        Scorer(ENCODER, max_bytes=0)
    with pytest.raises(TypeError, match="put it in a list"):
        Scorer(ENCODER).bind("a cat")
    bound = Scorer(ENCODER).bind(PROMPTS)
    with pytest.raises(ValueError, match="got 1 candidate lists for 3 bound prompts"):
        bound([neighbours("a", "b")])
    with pytest.raises(ValueError, match="got 1 token rows for 3"):
        bound.gradient([[49406, 49407]])
    with pytest.raises(ValueError, match="weights above 0"):
        MeanScorer([(Scorer(ENCODER), 0)])
