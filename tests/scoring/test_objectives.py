"""Objectives: the numbers, their signs, and when an attack is done."""

from typing import Any

import pytest
import torch

from leaf_diffusion.encoders import Hidden
from leaf_diffusion.scoring import Drift, Margin, Objective, Toward
from tests import tiny
from tests.shapes import unchecked

PROMPTS = ["a red umbrella", "two cats"]


ENCODER = tiny.encoder(name="tower-0")
FEATURES = ENCODER.features(ENCODER.tokenize(["a rd umbrella", "tow cats", "dogs"])).detach()
CLEAN = ENCODER.features(ENCODER.tokenize(PROMPTS)).detach()


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


def test_l2_drift_is_squared_and_unnormalised() -> None:
    for goal, clean in zip(Drift("l2").goals(ENCODER, PROMPTS), CLEAN, strict=True):
        torch.testing.assert_close(goal(FEATURES), ((FEATURES - clean) ** 2).sum(1), rtol=1e-4, atol=1e-5)
        assert goal.scale == pytest.approx(float(clean.square().sum()), rel=1e-4)
        assert not goal.solved(1e9)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_cosine_drift_at_every_batch_size(n: int) -> None:
    for goal, clean in zip(Drift("cosine").goals(ENCODER, PROMPTS), CLEAN, strict=True):
        assert goal(FEATURES[:n]).shape == (n,)
        torch.testing.assert_close(goal(FEATURES[:n]), 1 - cosine(FEATURES[:n], clean), rtol=1e-4, atol=1e-5)


def test_anchored_drift() -> None:
    anchor = tiny.encoder(1)
    wanted = anchor.features(anchor.tokenize(PROMPTS))
    goals = Drift("l2", anchor=anchor).goals(ENCODER, PROMPTS)
    torch.testing.assert_close(goals[1](FEATURES), ((FEATURES - wanted[1]) ** 2).sum(1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="the anchor tower-2 gives 12 features a prompt, tower-0 gives 8"):
        Drift("l2", anchor=tiny.encoder(2, name="tower-2", projection_dim=12)).goals(ENCODER, PROMPTS)


def test_toward_grows_as_the_target_nears() -> None:
    goal = Toward(["dogs", "two dogs"]).goals(ENCODER, PROMPTS)[0]
    assert goal(FEATURES).argmax() == 2
    assert goal(FEATURES)[2] == pytest.approx(1, abs=1e-5)
    target = torch.randn(2, 8) * 7
    kept = target.clone()
    goals = Toward(target).goals(ENCODER, PROMPTS)
    torch.testing.assert_close(goals[1](FEATURES), cosine(FEATURES, target[1]), rtol=1e-4, atol=1e-5)
    assert torch.equal(target, kept)  # never normalised in place


def test_margin_is_solved_once_the_label_flips() -> None:
    classes = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    logits = cosine(FEATURES[:, None], classes)
    for label in range(4):
        goal = Margin(classes, [label, 0]).goals(ENCODER, PROMPTS)[0]
        scores = goal(FEATURES)
        flipped = logits.argmax(1) != label
        assert [goal.solved(float(score)) for score in scores] == flipped.tolist()
        others = torch.cat([logits[:, :label], logits[:, label + 1 :]], 1)
        torch.testing.assert_close(scores, others.max(1).values - logits[:, label], rtol=1e-4, atol=1e-5)
    assert not goal.solved(0.0)


def test_token_states_can_be_attacked() -> None:
    goals = Drift("l2", feature=Hidden(-2)).goals(ENCODER, PROMPTS)
    own = ENCODER.features(ENCODER.tokenize(PROMPTS), Hidden(-2)).detach()
    assert goals[0](own)[0] == pytest.approx(0, abs=1e-5)
    assert goals[0](own)[1] > 0.01


def test_names_tell_objectives_apart() -> None:
    named: list[Objective] = [Drift("l2"), Drift("cosine"), Drift("l2", anchor=ENCODER)]
    named += [Drift("l2", feature="pooled"), Toward(["a"])]
    assert all(isinstance(each, Objective) for each in named)
    assert len({each.name for each in named}) == 5


def test_bad_arguments() -> None:
    unknown: Any = "l1"
    with pytest.raises(ValueError, match="unknown drift 'l1'"):
        Drift(unknown)
    with pytest.raises(ValueError, match="1 targets for 2 prompts"):
        Toward(["dogs"]).goals(ENCODER, PROMPTS)
    with pytest.raises(TypeError, match="put the string in a list"):
        Toward("dogs")
    with pytest.raises(ValueError, match="1 labels for 2 prompts"):
        Margin(torch.eye(8), [0]).goals(ENCODER, PROMPTS)
    with pytest.raises(ValueError, match="label 1 is 9, but there are 8 classes"):
        Margin(torch.eye(8), [0, 9])
    with pytest.raises(ValueError, match="classes >= 2"):
        unchecked(Margin.__init__)(object.__new__(Margin), torch.ones(8), [0])
    with pytest.raises(ValueError, match="class_features have 5 features, the encoder gives 8"):
        Margin(torch.eye(5), [0, 1]).goals(ENCODER, PROMPTS)[0](FEATURES)
