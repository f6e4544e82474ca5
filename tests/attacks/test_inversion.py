"""PEZ against the same search written out for one caption, and what it promises about batches and seeds."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from leaf_diffusion.attacks.base import generators
from leaf_diffusion.attacks.inversion import invert
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.scoring.objectives import clean_features

TEXTS = ["a red cat", "here we see a blue umbrella on a teal background", "two dogs"]
WORDS = list(range(300, 3000))


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    found = load_text_encoder("world:original")
    found.module.requires_grad_(False)
    return found


def lengths(encoder: TextEncoder, texts: list[str]) -> list[int]:
    return [len(row) - 2 for row in encoder.tokenize(texts)]


def by_hand(encoder: TextEncoder, text: str, length: int, steps: int) -> tuple[list[int], float]:
    """One caption, AdamW written out (decoupled decay, bias-corrected moments), brute-force projection."""
    table, target = encoder.token_embedding().detach(), clean_features(encoder, [text], "projected")[0]
    start = generators([text], 0)[0].integers(len(WORDS), size=length)
    free, units = table[[WORDS[i] for i in start]].clone(), normalize(table[WORDS], dim=-1)
    first, second = torch.zeros_like(free), torch.zeros_like(free)
    best: tuple[list[int], float] = ([], -2.0)
    for step in range(1, steps + 1):
        tokens = [WORDS[int(torch.stack([unit @ row for unit in units]).argmax())] for row in free]
        row = [encoder.rows.bos_id, *tokens, encoder.rows.eos_id]
        embeds = table[row][None].clone().requires_grad_()
        loss = -cosine_similarity(encoder.features_from_embeddings(embeds, [row]), target[None]).sum()
        (gradient,) = torch.autograd.grad(loss, embeds)
        if -loss.item() > best[1]:
            best = (row, -loss.item())
        slope = gradient[0, 1:-1]
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        free = free * (1 - 0.1 * 0.1)
        free = free - 0.1 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return best


def test_it_is_projected_gradient_with_adamw(encoder: TextEncoder) -> None:
    text = TEXTS[0]
    (found,) = invert(encoder, clean_features(encoder, [text], "projected"), lengths(encoder, [text]), [text], steps=6,
                      vocabulary=WORDS)  # fmt: skip
    row, cosine = by_hand(encoder, text, lengths(encoder, [text])[0], 6)
    assert found.token_ids == row
    assert found.cosine == pytest.approx(cosine, abs=1e-5)


def test_the_cosine_is_that_of_the_row_and_grows_with_the_steps(encoder: TextEncoder) -> None:
    targets = clean_features(encoder, TEXTS, "projected")
    short, long = (invert(encoder, targets, lengths(encoder, TEXTS), TEXTS, steps=n, vocabulary=WORDS) for n in (1, 40))
    for before, after, target, length in zip(short, long, targets, lengths(encoder, TEXTS), strict=True):
        again = encoder.features([after.token_ids])[0]
        assert after.cosine == pytest.approx(float(cosine_similarity(again, target, dim=0)), abs=1e-4)
        assert after.cosine > before.cosine + 0.05
        assert len(after.token_ids) == length + 2
        assert set(after.token_ids[1:-1]) <= set(WORDS)
        assert before.step == 0 <= after.step < 40


def test_neither_the_batch_nor_its_order_decides(encoder: TextEncoder) -> None:
    def found(texts: list[str]) -> dict[str, list[int]]:
        targets = clean_features(encoder, texts, "projected")
        made = invert(encoder, targets, lengths(encoder, texts), texts, steps=15, vocabulary=WORDS)
        return {text: each.token_ids for text, each in zip(texts, made, strict=True)}

    together = found(TEXTS)
    assert together == found(TEXTS[::-1])
    assert together == {text: row for text in TEXTS for row in found([text]).values()}


def test_the_seed_decides_and_special_tokens_are_never_chosen(encoder: TextEncoder) -> None:
    targets = clean_features(encoder, TEXTS[:1], "projected")
    rows = [
        invert(encoder, targets, [3], TEXTS[:1], steps=3, seed=seed, vocabulary=[300, 301, 302, 49406, 49407])[0]
        for seed in (0, 0, 1, 2, 3)
    ]
    assert rows[0] == rows[1]
    assert len({tuple(row.token_ids) for row in rows}) > 1
    assert all(set(row.token_ids[1:-1]) <= {300, 301, 302} for row in rows)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lengths": [3, 3]}, "one each a row"),
        ({"lengths": [76]}, "takes 1 to 75"),
        ({"steps": 0}, "steps"),
        ({"vocabulary": [49407]}, "vocabulary"),
        ({"vocabulary": [5, 60000]}, "vocabulary"),
    ],
)
def test_what_does_not_fit_is_refused(encoder: TextEncoder, changes: dict[str, object], said: str) -> None:
    arguments = {"lengths": [3], "names": ["x"], "steps": 1} | changes
    with pytest.raises(ValueError, match=said):
        invert(encoder, torch.randn(1, 128), **arguments)  # type: ignore[arg-type]
