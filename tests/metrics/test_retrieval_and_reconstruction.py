"""Ranks against a case by hand and against torchmetrics; what is given back of a text, by hand; BLEU from sacrebleu."""

import pytest
import torch
from torchmetrics.retrieval import RetrievalRecall

from leaf_diffusion.metrics.reconstruction import bleu, has_bleu, token_accuracy, token_overlap, word_accuracy, words
from leaf_diffusion.metrics.retrieval import ranks


def test_ranks_by_hand() -> None:
    similarities = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.4, 0.3, 0.8, 0.6], [0.1, 0.2, 0.3, 0.2]])
    # first: nothing beats 0.9; second: 0.4, 0.8 and 0.6 beat 0.3; third: 0.3 beats 0.2, and a tie counts against it
    assert ranks(similarities, [0, 1, 3]).tolist() == [1, 4, 3]
    recall = {k: (ranks(similarities, [0, 1, 3]) <= k).float().mean().item() for k in (1, 3, 4)}
    assert recall == pytest.approx({1: 1 / 3, 3: 2 / 3, 4: 1.0})


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_is_that_of_torchmetrics(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    similarities = torch.randn(40, 60, generator=generator)
    truth = torch.randint(60, (40,), generator=generator)
    similarities[torch.arange(40), truth] += 1.5
    relevant = torch.zeros(40, 60, dtype=torch.bool)
    relevant[torch.arange(40), truth] = True
    queries = torch.arange(40)[:, None].expand(40, 60)
    metric = RetrievalRecall(top_k=k)
    expected = metric(similarities.flatten(), relevant.flatten(), indexes=queries.flatten())
    found = (ranks(similarities, truth.tolist()) <= k).float().mean()
    assert 0.1 < float(found) < 1
    assert float(found) == pytest.approx(float(expected))


def test_an_encoder_that_hears_nothing_finds_nothing() -> None:
    assert ranks(torch.ones(2, 7), [0, 6]).tolist() == [7, 7]


@pytest.mark.parametrize(
    ("similarities", "truth", "said"),
    [
        (torch.zeros(2, 3), [0], "give one a query"),
        (torch.zeros(2, 3), [0, 3], "query 1"),
        (torch.tensor([[0.0, float("nan")]]), [0], "NaN"),
    ],
)
def test_what_cannot_be_ranked_is_refused(similarities: torch.Tensor, truth: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ranks(similarities, truth)


def test_words_and_tokens_by_hand() -> None:
    assert words("A cat's Hat, a_bat — 2 dogs!") == ["a", "cat's", "hat", "a", "bat", "2", "dogs"]
    # of a, red, cat, and, a, red, hat (7) the other text has one a, one red (twice there is once too often), cat
    assert word_accuracy("red cat cat a", "a red cat and a red hat") == pytest.approx(3 / 7)
    assert word_accuracy("redcat", "red cat") == 0
    assert word_accuracy("anything", "...") == 1
    assert token_accuracy([5, 6, 7, 7], [5, 7, 7, 6]) == pytest.approx(2 / 4)
    assert token_overlap([5, 6, 7, 7], [5, 7, 7, 6]) == 1
    assert token_overlap([5, 5, 5], [5, 6, 7, 5]) == pytest.approx(2 / 4)
    assert token_accuracy([], []) == 1


def test_bleu_is_sacrebleus() -> None:
    if not has_bleu():
        with pytest.raises(ModuleNotFoundError, match="pip install sacrebleu"):
            bleu("a cat", "a cat")
        return
    # by hand: 5/6 words, 3/5 pairs, 2/4 triples, 1/3 quadruples, no brevity penalty
    by_hand = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    assert bleu("the cat sat on the mat", "The cat sat on a mat") == pytest.approx(by_hand)
    assert bleu("a red cat on a mat", "a red cat on a mat") == pytest.approx(1)
