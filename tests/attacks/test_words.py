"""Words replaced by near ones: against a plain loop, within their similarity, and what is left alone."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from leaf_diffusion import load_text_encoder
from leaf_diffusion.attacks import Attack, WordSubstitution, attack_from_text
from leaf_diffusion.attacks.base import Outcome, Problem
from leaf_diffusion.attacks.words import STOP, _listed
from leaf_diffusion.cli.main import main
from leaf_diffusion.encoders import HFTextEncoder
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.evaluation.attack_sets import read_attacks
from leaf_diffusion.scoring import Margin, MeanScorer, Scorer
from leaf_diffusion.text import NoNewWords, load_words, pieces, word_distance
from tests import tiny

PROMPTS = ["a red umbrella on the beach", "Two cats, one MAT", "the dog's small house", "x 猫 4k"]
LIST = ["red", "blue", "green", "cat", "cats", "dog", "mat", "hat", "house", "mouse", "small", "tiny", "large", "boat", "one",
        "beach", "two", "umbrella"]  # fmt: skip


@pytest.fixture(scope="module")
def encoder() -> HFTextEncoder:
    made = tiny.encoder(**tiny.WIDER | {"initializer_factor": 8.0})
    made.module.requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("words") / "list.txt"
    path.write_text("\n".join(LIST))
    return str(path)


def vector(encoder: TextEncoder, text: str) -> torch.Tensor:
    return encoder.features(encoder.tokenize([text]))[0]


@cache
def mean_of_english(encoder: TextEncoder) -> torch.Tensor:
    rows = encoder.tokenize(sorted(load_words())[::50])
    return torch.cat([encoder.features(rows[i : i + 500]) for i in range(0, len(rows), 500)]).mean(0)


@cache
def similarity(encoder: TextEncoder, a: str, b: str) -> float:
    """As it is stated: the cosine of two words' embeddings less the mean one of every 50th shipped word."""
    mean = mean_of_english(encoder)
    return float(cosine_similarity(vector(encoder, a) - mean, vector(encoder, b) - mean, dim=0))


def replaced(original: str, perturbed: str) -> list[tuple[str, str]]:
    return [(a, b) for a, b in zip(pieces(original), pieces(perturbed), strict=True) if a != b]


def plain(encoder: HFTextEncoder, prompt: str, k: int, least: float, most: int, n_words: int) -> str:
    """Round by round with a loop over words: the most important ones, each one's nearest words, the best text."""
    words = re.findall(r"[a-z]+", prompt)
    assert " ".join(words) == prompt
    near: dict[int, list[str]] = {}
    for at, word in enumerate(words):
        found = sorted(((-similarity(encoder, word, other), i) for i, other in enumerate(LIST) if other != word))
        chosen = [LIST[i] for minus, i in found if -minus >= least][:most]
        if word not in STOP and chosen:
            near[at] = chosen

    def score(some: list[str]) -> float:
        return float((vector(encoder, " ".join(some)) - vector(encoder, prompt)).square().sum())

    current, best = list(words), 0.0
    for _ in range(k):
        worth = {at: score([*current[:at], "", *current[at + 1 :]]) for at in near}
        tried = sorted(near, key=lambda at: -worth[at])[:n_words]
        texts = [[*current[:at], new, *current[at + 1 :]] for at in tried for new in near[at]]
        winner = max(texts, key=score, default=current)
        if score(winner) > best:
            for at in [at for at in near if winner[at] != current[at]]:
                del near[at]
            current, best = winner, score(winner)
        else:
            near = {at: others for at, others in near.items() if at not in tried}
    return " ".join(current)


@pytest.mark.parametrize("n_words", [1, 2, 99])
def test_it_is_the_plain_loop(encoder: HFTextEncoder, vocabulary: str, n_words: int) -> None:
    prompts = ["a red cat on the beach", "two small boats by one house", "the mouse"]
    attack = WordSubstitution(vocabulary=vocabulary, similarity=0.1, n_candidates=4, n_words=n_words)
    for k in (1, 2, 3):
        found = [result.perturbed for result in attack(prompts, Scorer(encoder), k=k)]
        assert found == [plain(encoder, prompt, k, 0.1, 4, n_words) for prompt in prompts]


@pytest.mark.parametrize("k", [0, 1, 2, 5])
def test_k_words_within_the_similarity_whatever_the_batch(encoder: HFTextEncoder, vocabulary: str, k: int) -> None:
    attack = WordSubstitution(vocabulary=vocabulary, similarity=0.2, n_candidates=3)
    results = attack(PROMPTS, Scorer(encoder), k=k)
    for prompt, result in zip(PROMPTS, results, strict=True):
        pairs = replaced(prompt, result.perturbed)
        assert result.distance == len(pairs) == word_distance(prompt, result.perturbed) <= k
        for old, new in pairs:
            a, b = (word.lower().removesuffix("'s") for word in (old, new))
            assert b in LIST and a not in STOP and similarity(encoder, a, b) >= 0.2 - 1e-5
        assert result.score == pytest.approx(
            float((vector(encoder, result.perturbed) - vector(encoder, prompt)).square().sum()), rel=1e-4, abs=1e-6
        )
        assert result.queries <= k * (len(pieces(prompt)) + 5 * 3)
    alone = [attack([prompt], Scorer(encoder, max_bytes=100_000), k=k)[0] for prompt in PROMPTS]
    assert [(r.perturbed, r.queries) for r in results] == [(r.perturbed, r.queries) for r in alone]
    assert results[3].perturbed == PROMPTS[3]  # no English word to replace


def test_case_and_possessive_stay_and_signs_too(encoder: HFTextEncoder, vocabulary: str) -> None:
    attack = WordSubstitution(vocabulary=vocabulary, similarity=-1)
    first, second, third = attack(["RED, Cats: (b4ll dog_1 cafe\u0301) the", "dog’s", "I"], Scorer(encoder), k=9)
    assert re.fullmatch(r"[A-Z]+, [A-Z][a-z]+: \(b4ll dog_1 cafe\u0301\) the", first.perturbed) and first.distance == 2
    assert second.perturbed.endswith("’s") and second.distance == 1
    assert third.perturbed == "I"


def test_nearer_words_alone_are_left_by_a_higher_similarity(encoder: HFTextEncoder, vocabulary: str) -> None:
    found = [
        WordSubstitution(vocabulary=vocabulary, similarity=least, n_candidates=99)(PROMPTS[:3], Scorer(encoder))
        for least in (-1.0, 0.3, 0.999)
    ]
    queries = [sum(r.queries for r in each) for each in found]
    assert queries[0] > queries[1] > queries[2] == 0
    assert all(a.score >= b.score for a, b in zip(found[0], found[1], strict=True))


def test_the_default_list_is_what_the_encoder_reads_as_one_token(encoder: HFTextEncoder) -> None:
    (result,) = WordSubstitution(similarity=0.0, n_candidates=200)(["a red umbrella"], Scorer(encoder))
    ((_, new),) = replaced("a red umbrella", result.perturbed)
    assert new in load_words() and new not in STOP
    assert len(encoder.tokenize([new])[0]) == 3


def test_a_named_encoder_compares_for_all(vocabulary: str) -> None:
    attack = WordSubstitution(vocabulary=vocabulary, similarity=0.0, n_candidates=2, encoder="world:original")
    scorers = [Scorer(tiny.encoder(seed)) for seed in (0, 1)]
    mean = MeanScorer([(scorer, 1.0) for scorer in scorers])
    judge = load_text_encoder("world:original")
    found = [*(attack(PROMPTS, scorer) for scorer in scorers), attack(PROMPTS, mean)]
    for results in found:
        pairs = [pair for r in results for pair in replaced(r.original.lower(), r.perturbed.lower())]
        assert pairs and all(similarity(judge, *(word.removesuffix("'s") for word in pair)) >= 0 for pair in pairs)
    assert len({tuple(r.queries for r in results) for results in found}) == 1
    with pytest.raises(ValueError, match="name the one that compares words"):
        WordSubstitution(vocabulary=vocabulary)(PROMPTS, mean)


def test_the_whole_text_has_a_bound_of_its_own(encoder: HFTextEncoder, vocabulary: str) -> None:
    judge = load_text_encoder("world:original")
    found = {}
    for least in (-1.0, 0.5, 1.0):
        attack = WordSubstitution(vocabulary=vocabulary, similarity=-1, encoder="world:original", sentence=least)
        found[least] = attack(PROMPTS[:3], Scorer(encoder), k=2)
        for prompt, result in zip(PROMPTS, found[least], strict=False):
            cosine = float(cosine_similarity(vector(judge, prompt), vector(judge, result.perturbed), dim=0))
            assert cosine >= least - 1e-5
    assert sum(r.score for r in found[-1.0]) > sum(r.score for r in found[0.5]) > 0
    assert all(r.distance == r.queries == 0 for r in found[1.0])


def test_training_in_place_is_noticed(vocabulary: str) -> None:
    encoder = tiny.encoder(**tiny.WIDER | {"initializer_factor": 8.0})
    attack = WordSubstitution(vocabulary=vocabulary, similarity=0.2, n_candidates=2)
    attack(PROMPTS, Scorer(encoder))
    with torch.no_grad():
        encoder.module.get_input_embeddings().weight.mul_(-0.7)
    again = attack(PROMPTS, Scorer(encoder))
    fresh = tiny.encoder(**tiny.WIDER | {"initializer_factor": 8.0})
    with torch.no_grad():
        fresh.module.get_input_embeddings().weight.mul_(-0.7)
    assert [r.perturbed for r in again] == [r.perturbed for r in attack(PROMPTS, Scorer(fresh))]


def test_it_stops_once_a_label_flips(encoder: HFTextEncoder, vocabulary: str) -> None:
    classes = encoder.features(encoder.tokenize(["a red umbrella", "a blue cat"]))
    attack = WordSubstitution(vocabulary=vocabulary, similarity=-1)
    first, solved = attack(["a red umbrella", "a red umbrella"], Scorer(encoder, Margin(classes, [0, 1])), k=3)
    assert first.success and 0 < first.distance < 3
    assert (solved.success, solved.queries, solved.distance) == (True, 0, 0)


class TooFar(Attack):
    name = "too-far"
    unit = "word"

    @staticmethod
    def measure(prompt: str, perturbed: str) -> int:
        return word_distance(prompt, perturbed)

    def run(self, problem: Problem) -> list[Outcome]:
        return ["one two cat" for _ in problem.prompts]


def test_more_words_than_k_are_caught_from_outside(fake: Any) -> None:
    assert TooFar()(["one red cat"], fake())[0].distance == 1
    with pytest.raises(RuntimeError, match="by 2 edits where 1 are allowed"):
        TooFar()(["a red cat"], fake())
    with pytest.raises(RuntimeError, match="where 1 are allowed"):
        TooFar()(["one red cat "], fake())


@given(st.text(), st.text())
def test_word_distance(a: str, b: str) -> None:
    assert "".join(pieces(a)) == a
    assert word_distance(a, a) == 0 and word_distance(a, b) == word_distance(b, a)
    assert (word_distance(a, b) == 0) == (a == b)


def test_word_distance_counts_words() -> None:
    for a, b, far in (
        ("a red cat", "a blue cat", 1), ("a red cat", "two blue cats", 3), ("a red cat", "a Red cat", 1),
        ("a red cat", "a  red cat", 1), ("the dog's hat", "the cat's hat", 1), ("red", "", 2), ("naïve 猫", "naive 犬", 2),
    ):  # fmt: skip
        assert word_distance(a, b) == far, (a, b)


def test_what_cannot_be_is_refused(encoder: HFTextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaf_diffusion.attacks.words.MOST_WORDS", 30)
    with pytest.raises(ValueError, match="words writes other words, which the constraint no-new-words forbids"):
        WordSubstitution()(["a cat"], Scorer(encoder), constraint=NoNewWords())
    for wrong, said in (
        ({"similarity": 1.5}, "similarity is a cosine"), ({"sentence": 0.5}, "sentence needs an encoder"),
        ({"n_candidates": 0}, "n_candidates must be at least 1"), ({"n_words": 0}, "n_words must be at least 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            WordSubstitution(**wrong)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        WordSubstitution(vocabulary=str(tmp_path / "none.txt"))
    for number, (content, said) in enumerate(
        (("cat\nice cream\n", "line 2: 'ice cream' is no single word"), ("\n \n", "0 words"), ("cat\nb4ll", "line 2: 'b4ll'"),
         ("cat\n" + "x" * 65, "line 2: 'xxx"), ("cat\n" * 31, "31 words; a list has one at least and 30 at most"))
    ):  # fmt: skip
        path = tmp_path / f"{number}.txt"
        path.write_text(content)
        with pytest.raises(ValueError, match=said):
            attack_from_text(f"words:vocabulary={path}")


def test_a_list_is_part_of_the_identity(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("cat\n\nhat\ncat\n")
    attack = WordSubstitution(vocabulary=str(path), encoder="world:original")
    before = attack.settings()
    assert _listed(str(path)) == ("cat", "hat")
    path.write_text("cat\nbat\n")
    _listed.cache_clear()
    after = attack.settings()
    assert before["vocabulary_sha256"] != after["vocabulary_sha256"]
    assert len(str(before["encoder_fingerprint"])) == 64 and "encoder_fingerprint" not in WordSubstitution().settings()


def test_the_command_writes_sets_that_an_evaluation_reads(
    tmp_path: Path, vocabulary: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, output = tmp_path / "prompts.txt", tmp_path / "attacked.jsonl"
    prompts.write_text("\n".join(PROMPTS[:3]))
    words = ["attack", "--prompts", str(prompts), "--attack", "words", "--k", "1", "2", "--output", str(output)]
    words += ["--attack.vocabulary", vocabulary, "--attack.similarity", "-0.2"]
    assert main(words) == 2 and "take the constraint none" in capsys.readouterr().err
    assert main([*words, "--constraint", "none"]) == 0
    rows = read_attacks(output)
    assert len(rows) == 6 and any(row.perturbed != row.prompt for row in rows)
    assert all(row.attack == "words" and word_distance(row.prompt, row.perturbed) <= row.k for row in rows)
    for attack in ("ocr", "swapped-letters"):
        assert main(["attack", "--prompts", str(prompts), "--attack", attack, "--output", str(output)]) == 0
        assert len(read_attacks(output)) == 3
    missing = [*words, "--constraint", "none", "--attack.vocabulary", str(tmp_path / "none.txt")]
    assert main(missing) == 2 and "none.txt" in capsys.readouterr().err
