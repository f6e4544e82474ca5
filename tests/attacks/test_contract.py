"""The attacks on real CLIP text towers (tiny, random weights, the real tokenizer) through the real scorers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from leaf_diffusion.attacks import Attack, AttackResult, Charmer, Exhaustive, LeafAttack, RandomTypos
from leaf_diffusion.encoders import HFTextEncoder, clip_tokenizer
from leaf_diffusion.encoders.defences import Speller
from leaf_diffusion.scoring import Drift, Margin, MeanScorer, Scorer, Toward
from leaf_diffusion.text import NoNewWords, neighbours

PROMPTS = ["a red umbrella", "two cats on a mat", "naïve café", 'a "quoted" 猫']
ATTACKS: list[Attack] = [Charmer(n_positions=3), LeafAttack(rho=12), RandomTypos()]
Tower = Callable[..., HFTextEncoder]


@pytest.fixture(scope="module")
def tower() -> Tower:
    tokenizer = clip_tokenizer()

    def make(seed: int = 0, scale: float = 1.0, defence: Any = None) -> HFTextEncoder:
        torch.manual_seed(seed)
        config = CLIPTextConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, projection_dim=16,
            vocab_size=49408, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407, initializer_factor=8.0,
        )  # fmt: skip
        module = CLIPTextModelWithProjection(config).eval().requires_grad_(False)
        module.text_projection.weight.mul_(scale)
        return HFTextEncoder(module, tokenizer, name=f"tiny-{seed}", defence=defence)

    return make


def texts(results: list[AttackResult]) -> list[str]:
    return [result.perturbed for result in results]


@pytest.mark.parametrize("attack", [*ATTACKS, Exhaustive()], ids=lambda attack: attack.name)
def test_drift_within_the_limits(tower: Tower, attack: Attack) -> None:
    encoder, rule = tower(), NoNewWords()
    prompts = PROMPTS[:1] if isinstance(attack, Exhaustive) else PROMPTS
    for prompt, result in zip(prompts, attack(prompts, Scorer(encoder), constraint=rule), strict=True):
        assert result.distance == 1
        assert rule.holds(prompt, result.perturbed)
        rows = encoder.tokenize([prompt, result.perturbed])
        clean, moved = (encoder.features([row])[0] for row in rows)
        assert result.score == pytest.approx(float((moved - clean).square().sum()), rel=1e-4)
        assert result.token_ids == rows[1]
        assert result.clean_score == pytest.approx(0, abs=1e-6)
        assert (result.success, result.truncated) == (None, False)


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
        assert all(result.score > result.clean_score for result in results)
        assert all(result.success is None for result in results)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_batching_decides_nothing(tower: Tower, attack: Attack) -> None:
    encoder = tower()
    together = attack(PROMPTS, Scorer(encoder), k=2, constraint=NoNewWords(), seed=1)
    small = attack(PROMPTS, Scorer(encoder, max_bytes=200_000), k=2, constraint=NoNewWords(), seed=1)
    alone = [attack([prompt], Scorer(encoder), k=2, constraint=NoNewWords(), seed=1)[0] for prompt in PROMPTS]
    assert texts(together) == texts(small) == texts(alone)
    assert [r.queries for r in together] == [r.queries for r in alone]
    assert [r.score for r in together] == pytest.approx([r.score for r in alone], rel=1e-4)


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
