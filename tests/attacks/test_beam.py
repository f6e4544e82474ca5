"""A beam against a plain one and against all texts; searches that end at the first flip against those that look at everything."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from leaf_diffusion import load_text_encoder
from leaf_diffusion.attacks import Charmer, Exhaustive
from leaf_diffusion.attacks.search import PART
from leaf_diffusion.scoring import Drift, Margin, Scorer
from leaf_diffusion.text import Candidates, NoNewWords, neighbours
from tests import tiny


def rugged(prompt: str, text: str) -> float:
    """Scores without ties and without a slope to climb."""
    return int.from_bytes(hashlib.sha256(f"{prompt}\n{text}".encode()).digest()[:4], "big") / 2**32 * (text != prompt)


def plain_beam(prompt: str, alphabet: str, width: int, k: int) -> list[str]:
    """The best texts after 0, 1, ... k rounds that edit each of the `width` best so far."""
    members, best = [prompt], [prompt]
    for _ in range(k):
        pool = dict.fromkeys([*members, *(text for one in members for text in neighbours(one, alphabet).texts())])
        members = sorted(pool, key=lambda text: -rugged(prompt, text))[:width]
        best.append(members[0])
    return best


@pytest.mark.parametrize("width", [1, 2, 5, 40])
def test_a_beam_is_the_plain_one(fake: Any, width: int) -> None:
    prompts, alphabet = ["ab", "a cat", "猫!"], "xy z"
    attack = Charmer(n_positions=99, beam=width, alphabet=alphabet)
    for k, results in attack.path(prompts, fake(rugged), (1, 2, 3)).items():
        assert [r.perturbed for r in results] == [plain_beam(prompt, alphabet, width, k)[k] for prompt in prompts]


def test_a_wide_beam_finds_the_best_of_all_texts(fake: Any) -> None:
    prompt, alphabet = "ab", "xy"
    once = neighbours(prompt, alphabet).texts()
    twice = {text for one in [prompt, *once] for text in neighbours(one, alphabet).texts()} | {prompt, *once}
    found = Charmer(n_positions=99, beam=1000, alphabet=alphabet)([prompt], fake(rugged), k=2)[0]
    assert found.perturbed == max(twice, key=lambda text: rugged(prompt, text))
    assert found.queries < 5 + len(once) + 7 * len(twice)  # what two members share is asked once


def test_a_beam_is_never_weaker_at_two_edits_and_counts_what_it_asks(fake: Any) -> None:
    prompts, rule = ["a red cat", "two hats", "naïve 🐈"], NoNewWords()
    greedy = Charmer(n_positions=3).path(prompts, fake(), (1, 2), constraint=rule)
    for width in (2, 4):
        scorer = fake()
        beam = Charmer(n_positions=3, beam=width).path(prompts, scorer, (1, 2), constraint=rule)
        assert [r.perturbed for r in beam[1]] == [r.perturbed for r in greedy[1]]
        assert all(b.score >= g.score for b, g in zip(beam[2], greedy[2], strict=True))
        assert [r.queries for r in beam[2]] == list(map(len, scorer.bound[0].seen))
        assert all(rule.holds(r.original, r.perturbed) for r in beam[2])
        assert all(b.queries > 1.3 * g.queries for b, g in zip(beam[2], greedy[2], strict=True))


@pytest.mark.parametrize("engine", ["plain", "prefix"])
def test_the_encoder_reads_joined_candidates_as_their_texts(engine: Any) -> None:
    encoder = tiny.encoder(**tiny.WIDER)
    parts = [neighbours(text, "xe 1")[np.arange(9)] for text in ("a red cat", "a rd cat", "naïve &amp; 猫")]
    joined, texts = Candidates.joined(parts), [text for part in parts for text in part.texts()]
    assert len(joined) == 27 and joined.texts() == texts == [joined.text(i) for i in range(27)]
    assert joined[np.arange(27) % 2 == 0].texts() == texts[::2] and joined[5:20].texts() == texts[5:20]
    assert encoder.tokenize_candidates(joined) == [tuple(row) for row in encoder.tokenize(texts)]
    bound = Scorer(encoder, Drift("l2"), engine=engine).bind(["a red cat", "x"])
    mine, others = bound([joined, neighbours("x", "y")])
    alone = Scorer(encoder, Drift("l2"), engine="plain").bind(["a red cat", "x"])
    wanted, more = alone([Candidates.from_texts(texts), neighbours("x", "y")])
    torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(others, more, rtol=1e-4, atol=1e-5)
    assert bound.queries == [27, len(neighbours("x", "y"))]
    with pytest.raises(ValueError, match="order in which they stand"):
        joined[np.array([20, 3])]
    with pytest.raises(IndexError):
        joined.text(27)


def test_the_first_flip_ends_a_search(fake: Any) -> None:
    prompt = "a red cat on a mat"
    everything, rule = len(neighbours(prompt)), NoNewWords()
    scores = {text: rugged(prompt, text) for text in neighbours(prompt).texts() if rule.holds(prompt, text)}
    for share in (0.001, 0.02, 0.5):
        threshold = float(np.quantile(list(scores.values()), 1 - share))
        scorer = fake(rugged, threshold)
        found = Exhaustive()([prompt], scorer, constraint=rule)[0]
        assert found.success and scores[found.perturbed] > threshold
        seen = scorer.bound[0].seen[0]
        first = [scores[text] > threshold for text in seen].index(True)
        assert len({text[: len(prompt) // 2] for text in seen[:40]}) > 5  # all over the text from the first on
        # parts of 128, 256, 512, ...: at most three times as many as were needed
        assert first < found.queries <= max(PART, 3 * first + PART)
    flat = Exhaustive()([prompt], fake(rugged, 2.0), constraint=rule)[0]
    assert (flat.success, flat.queries, flat.score) == (False, len(scores), pytest.approx(max(scores.values())))
    assert flat.queries < everything


def test_an_allowed_probe_that_flips_is_the_result(fake: Any) -> None:
    prompt = "a cat"
    scorer = fake(lambda _, text: float(text == "a c at"), 0.5)
    free = Charmer()([prompt], scorer)[0]
    assert (free.perturbed, free.queries, free.success) == ("a c at", 11, True)
    # "a", "c" and "at" are words that were not there: the probe may not be the result, and nothing else flips
    bound = Charmer()([prompt], fake(lambda _, text: float(text == "a c at"), 0.5), constraint=NoNewWords())[0]
    assert not bound.success and bound.queries > 11


@pytest.mark.parametrize("robust", [False, True])
def test_margins_are_decided_alike_with_and_without_an_early_end(robust: bool) -> None:
    changes: tiny.Changes = {**tiny.WIDER, "initializer_factor": 6.0}
    encoder, rule = load_text_encoder("world:leaf") if robust else tiny.encoder(**changes), NoNewWords()
    texts = ["a red umbrella", "a blue guitar"] if robust else ["a red cat", "two hats", "a key", "the bell"]
    with torch.inference_mode():
        classes = normalize(encoder.features(encoder.tokenize(texts)), dim=-1)
    found = Exhaustive()(texts, Scorer(encoder, Margin(classes, range(len(texts)))), constraint=rule)
    for i, (text, each) in enumerate(zip(texts, found, strict=True)):
        edits = neighbours(text)
        allowed = edits[np.array([rule.holds(text, other) for other in edits.texts()])]
        (scores,) = Scorer(encoder, Margin(classes, [i])).bind([text])([allowed])
        assert each.success == bool((scores > 0).any()) == (not robust)
        if robust:
            assert (each.queries, each.score) == (len(allowed), pytest.approx(float(scores.max()), abs=1e-5))
        else:
            assert each.queries < len(allowed)


def test_several_probes_are_allowed_and_results_as_well(fake: Any) -> None:
    prompts, rule = ["a red cat", "two hats on a mat"], NoNewWords()
    scorer = fake(rugged)
    found = Charmer(n_positions=2, probe=" xe1-")(prompts, scorer, constraint=rule)
    for prompt, result, seen in zip(prompts, found, scorer.bound[0].seen, strict=True):
        assert all(rule.holds(prompt, text) for text in seen)
        assert result.queries == len(seen)
        assert result.score == pytest.approx(max(rugged(prompt, text) for text in seen))
        probed = {text for text in neighbours(prompt, " xe1-").texts() if rule.holds(prompt, text)}
        assert probed <= set(seen)
        # stage 2 tries the alphabet where the best probes are
        best = max(probed, key=lambda text: rugged(prompt, text))
        place = next(i for i, (a, b) in enumerate(zip(prompt, best, strict=False)) if a != b)
        assert sum(text.startswith(prompt[:place]) for text in set(seen) - probed) > 60
    with pytest.raises(ValueError, match="probe needs one character"):
        Charmer(probe="")


def test_a_probe_alone_can_be_the_result(fake: Any) -> None:
    found = Charmer(n_positions=1, probe="x")(
        ["a cat"], fake(lambda _, text: float(text == "ax cat") + 0.1 * ("cxt" in text))
    )
    assert found[0].perturbed == "ax cat"
