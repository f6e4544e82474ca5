"""A deterministic scorer without a model: scores are functions of (prompt, text), and each call is recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from leaf_diffusion.text import Candidates

Rule = Callable[[str, str], float]


def embed(text: str) -> np.ndarray:
    """Case-blind, position-aware features [4], so that some edits tie, as in CLIP."""
    codes = np.frombuffer(text.lower().encode("utf-32-le"), dtype=np.uint32).astype(float)
    return np.sin(np.outer([0.3, 0.7, 1.1, 1.9], codes + 0.37 * np.arange(len(codes)))).sum(1)


def drift(prompt: str, text: str) -> float:
    return float(((embed(text) - embed(prompt)) ** 2).sum())


class FakeTokenizer:
    def text(self, row: Sequence[int]) -> str:
        return "".join(map(chr, row))


class FakeEncoder:
    """One token a code point."""

    rows = FakeTokenizer()
    context_length = 77

    def preprocess(self, texts: Sequence[str]) -> list[str]:
        return list(texts)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(c) for c in text][: self.context_length] for text in texts]

    def is_truncated(self, texts: Sequence[str]) -> list[bool]:
        return [len(text) > self.context_length for text in texts]


class FakeScorer:
    objective_name = "a rule"
    in_full = True

    def __init__(self, rule: Rule = drift, threshold: float | None = None) -> None:
        self.rule, self.threshold = rule, threshold
        self.encoder = FakeEncoder()
        self.bound: list[FakeBound] = []

    def bind(self, prompts: Sequence[str]) -> FakeBound:
        self.bound.append(FakeBound(self, list(prompts)))
        return self.bound[-1]


class FakeBound:
    def __init__(self, scorer: FakeScorer, prompts: list[str]) -> None:
        self.scorer, self.prompts = scorer, prompts
        self.queries = [0] * len(prompts)
        self.seen: list[list[str]] = [[] for _ in prompts]

    def __call__(self, candidates: Sequence[Candidates], *, best: int = 1) -> list[Tensor]:
        assert len(candidates) == len(self.prompts)
        scores = []
        for i, (prompt, some) in enumerate(zip(self.prompts, candidates, strict=True)):
            rows = some.token_rows
            texts = some.texts() if rows is None else [self.scorer.encoder.rows.text(row) for row in rows]
            self.queries[i] += len(texts)
            self.seen[i] += texts
            scores.append(torch.tensor([self.scorer.rule(prompt, text) for text in texts], dtype=torch.float32))
        return scores

    def clean(self) -> list[float]:
        return [float(np.float32(self.scorer.rule(prompt, prompt))) for prompt in self.prompts]

    def solved(self, i: int, score: float) -> bool:
        return self.scorer.threshold is not None and score > self.scorer.threshold


@pytest.fixture(scope="session")
def fake() -> type[FakeScorer]:
    return FakeScorer
