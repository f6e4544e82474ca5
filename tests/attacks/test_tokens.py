"""Token substitution on a real CLIP text tower: exactly scored, within its budget, typeable."""

from typing import Any

import pytest
import torch

from leaf_diffusion.attacks import TokenSubstitution
from leaf_diffusion.encoders import HFTextEncoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.scoring import Drift, Margin, MeanScorer, Scorer
from leaf_diffusion.text import NoNewWords
from tests import tiny

PROMPTS = ["a red umbrella", "two cats on a mat", "x"]


@pytest.fixture(scope="module")
def encoder() -> HFTextEncoder:
    made = tiny.encoder(**tiny.WIDER | {"initializer_factor": 8.0})
    made.module.requires_grad_(False)
    return made


def score_of(encoder: HFTextEncoder, prompt: str, rows: list[list[int]]) -> torch.Tensor:
    clean = encoder.features(encoder.tokenize([prompt]))
    return (encoder.features(rows) - clean).square().sum(-1)


def test_with_every_token_as_a_candidate_it_is_exact(encoder: HFTextEncoder) -> None:
    attack = TokenSubstitution(top_n=60_000, starts=1, round_trip=False)
    (result,) = attack(["cat"], Scorer(encoder))
    begin, old, end = encoder.tokenize(["cat"])[0]
    rows = [[begin, token, end] for token in range(49406) if token != old]
    scores = torch.cat([score_of(encoder, "cat", rows[i : i + 8000]) for i in range(0, len(rows), 8000)])
    assert result.queries == len(rows)
    assert result.score == pytest.approx(float(scores.max()), rel=1e-4)
    assert result.token_ids == rows[int(scores.argmax())]
    assert result.distance == 1


@pytest.mark.parametrize("round_trip", [True, False])
def test_budget_score_and_typeable_rows(encoder: HFTextEncoder, round_trip: bool) -> None:
    attack = TokenSubstitution(top_n=40, round_trip=round_trip)
    for k in (1, 2):
        for prompt, result in zip(PROMPTS, attack(PROMPTS, Scorer(encoder), k=k), strict=True):
            row = encoder.tokenize([prompt])[0]
            assert len(result.token_ids) == len(row)
            changed = [i for i, (a, b) in enumerate(zip(row, result.token_ids, strict=True)) if a != b]
            assert len(changed) == result.distance == min(k, len(row) - 2)
            assert (result.token_ids[0], result.token_ids[-1]) == (row[0], row[-1])
            assert result.queries <= k * 40
            assert result.score == pytest.approx(float(score_of(encoder, prompt, [result.token_ids])[0]), rel=1e-4)
            if round_trip:
                assert encoder.tokenize([result.perturbed])[0] == result.token_ids


def test_the_gradient_finds_more_than_as_many_random_substitutions(encoder: HFTextEncoder) -> None:
    prompt = PROMPTS[1]
    found = TokenSubstitution(top_n=64, round_trip=False)([prompt], Scorer(encoder))[0].score
    row = encoder.tokenize([prompt])[0]
    generator = torch.Generator().manual_seed(0)
    best = []
    for _ in range(9):
        rows = []
        for _ in range(64):
            at = int(torch.randint(1, len(row) - 1, (1,), generator=generator))
            rows.append([*row[:at], int(torch.randint(49406, (1,), generator=generator)), *row[at + 1 :]])
        best.append(float(score_of(encoder, prompt, rows).max()))
    assert sum(found > random for random in best) >= 7


def test_each_prompt_alone_gives_the_same(encoder: HFTextEncoder) -> None:
    attack = TokenSubstitution(top_n=24)
    together = attack(PROMPTS, Scorer(encoder, Drift("cosine")), k=2)
    alone = [attack([prompt], Scorer(encoder, Drift("cosine")), k=2)[0] for prompt in PROMPTS]
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]


def test_a_constraint_judges_the_decoded_text(encoder: HFTextEncoder) -> None:
    rule = NoNewWords()
    for prompt, result in zip(
        PROMPTS, TokenSubstitution(top_n=64)(PROMPTS, Scorer(encoder), constraint=rule), strict=True
    ):
        assert rule.holds(prompt, result.perturbed)


def test_it_stops_once_a_label_flips(encoder: HFTextEncoder) -> None:
    classes = encoder.features(encoder.tokenize(["a red umbrella", "a blue cat"]))
    (result,) = TokenSubstitution(top_n=256)(["a red umbrella"], Scorer(encoder, Margin(classes, [0])), k=3)
    assert result.success and result.distance < 3


def test_a_tower_of_open_clip_is_attacked_too() -> None:
    judge = load_text_encoder("world:judge")
    (result,) = TokenSubstitution(top_n=20)(["a red cat"], Scorer(judge))
    assert result.distance == 1 and judge.tokenize([result.perturbed])[0] == result.token_ids


def test_what_it_cannot_do_is_said(encoder: HFTextEncoder) -> None:
    both: Any = MeanScorer([(Scorer(encoder), 1.0), (Scorer(encoder), 1.0)])
    with pytest.raises(ValueError, match="gradient of one encoder"):
        TokenSubstitution()(["a cat"], both)
    with pytest.raises(ValueError, match="at least 1"):
        TokenSubstitution(top_n=0)
