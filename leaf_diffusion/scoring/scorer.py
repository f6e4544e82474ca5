"""Scores of candidate prompts: the plain scorer, which is the definition every faster one is tested against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from leaf_diffusion.encoders.base import Hidden, TextEncoder
from leaf_diffusion.scoring.objectives import Drift, Goal, Objective
from leaf_diffusion.text.edits import Candidates


class BoundScore(Protocol):
    """A scorer bound to its prompts."""

    queries: list[int]  # candidates scored for each prompt; duplicates count as asked

    def __call__(self, candidates: Sequence[Candidates]) -> list[Float[Tensor, " _len"]]: ...
    def gradient(self, token_rows: Sequence[Sequence[int]]) -> list[Float[Tensor, "_len vocab"]]: ...
    def clean(self) -> list[float]: ...
    def solved(self, i: int, score: float) -> bool: ...


class TowerScore(BoundScore, Protocol):
    """The bound score of one encoder, as every engine returns it."""

    goals: list[Goal]


class AnyScorer(Protocol):
    """What attacks take: `Scorer` or `MeanScorer`."""

    @property
    def name(self) -> str: ...
    @property
    def encoder(self) -> TextEncoder: ...
    def bind(self, prompts: Sequence[str]) -> BoundScore: ...


class Scorer:
    """Scores candidates by an objective on one encoder. `max_batch_tokens` bounds a forward pass, padding included."""

    def __init__(
        self,
        encoder: TextEncoder,
        objective: Objective | None = None,
        engine: str = "plain",
        max_batch_tokens: int = 4096,
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"unknown engine {engine!r}; available: {', '.join(sorted(ENGINES))}")
        if max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens must be at least 1, got {max_batch_tokens}")
        self.encoder, self.engine, self.max_batch_tokens = encoder, engine, max_batch_tokens
        self.objective: Objective = Drift("l2") if objective is None else objective

    @property
    def name(self) -> str:
        return f"{self.encoder.name}/{self.objective.name}"

    def bind(self, prompts: Sequence[str]) -> TowerScore:
        """The score of each prompt's candidates; the clean features are computed here."""
        if isinstance(prompts, str):
            raise TypeError("expected a list of prompts, got one string: put it in a list")
        return ENGINES[self.engine](self, list(prompts))


class PlainScore:
    """Deduplicated token rows, sorted by length, in batches trimmed to their longest row."""

    def __init__(self, scorer: Scorer, prompts: list[str]) -> None:
        self.encoder, self.prompts, self.max_batch_tokens = scorer.encoder, prompts, scorer.max_batch_tokens
        self.feature = scorer.objective.feature
        self.goals: list[Goal] = scorer.objective.goals(self.encoder, prompts)
        self.queries = [0] * len(prompts)

    def __call__(self, candidates: Sequence[Candidates]) -> list[Float[Tensor, " _len"]]:
        """Scores, float32 on the CPU, one tensor a prompt; an empty `Candidates` gives an empty one."""
        _one_each("candidate lists", len(candidates), len(self.prompts))
        for i, each in enumerate(candidates):
            self.queries[i] += len(each)
        return self._score([_rows(self.encoder, each) for each in candidates])

    def _score(self, asked: Sequence[Sequence[tuple[int, ...]]]) -> list[Tensor]:
        owners: dict[tuple[int, ...], set[int]] = {}
        for i, rows in enumerate(asked):
            for row in rows:
                owners.setdefault(row, set()).add(i)
        known: list[dict[tuple[int, ...], float]] = [{} for _ in asked]
        with torch.inference_mode():
            for batch in self._batches(sorted(owners, key=lambda row: (len(row), row))):
                features = self.encoder.features(batch, self.feature)
                positions: dict[int, list[int]] = {}
                for position, row in enumerate(batch):
                    for i in owners[row]:
                        positions.setdefault(i, []).append(position)
                for i, chosen in positions.items():
                    mine = (
                        features
                        if len(chosen) == len(batch)
                        else features[torch.tensor(chosen, device=features.device)]
                    )
                    scores: list[float] = self.goals[i](mine).float().tolist()
                    known[i].update((batch[position], score) for position, score in zip(chosen, scores, strict=True))
        return [torch.tensor([known[i][row] for row in rows], dtype=torch.float32) for i, rows in enumerate(asked)]

    def _batches(self, rows: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        everything = isinstance(self.feature, Hidden) and self.feature.positions == "all"
        batch: list[tuple[int, ...]] = []
        for row in rows:  # by length, so the row at hand is the batch's longest
            length = self.encoder.context_length if everything else len(row)
            if batch and (len(batch) + 1) * length > self.max_batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def gradient(self, token_rows: Sequence[Sequence[int]]) -> list[Float[Tensor, "_len vocab"]]:
        """d score / d one-hot token for one row a prompt: what a token-level attack ranks replacements by."""
        _one_each("token rows", len(token_rows), len(self.prompts))
        table = self.encoder.token_embedding().detach()
        gradients = []
        for goal, row in zip(self.goals, token_rows, strict=True):
            with torch.inference_mode(False), torch.enable_grad():
                embeds = table[torch.tensor(list(row), device=table.device)][None].float().requires_grad_()
                score = goal(self.encoder.features_from_embeddings(embeds, [row], self.feature)).sum()
                (slope,) = torch.autograd.grad(score, embeds)
            # an embedding is the one-hot times the table, so the chain rule is one product
            gradients.append(slope[0] @ table.float().T)
        return gradients

    def clean(self) -> list[float]:
        """Scores of the untouched prompts (a drift's is 0 unless it has an anchor); no queries are counted."""
        rows = self.encoder.tokenize(self.encoder.preprocess(self.prompts))
        return [float(scores[0]) for scores in self._score([[tuple(row)] for row in rows])]

    def solved(self, i: int, score: float) -> bool:
        return self.goals[i].solved(score)


# engine name -> what `Scorer.bind` returns
ENGINES: dict[str, Callable[[Scorer, list[str]], TowerScore]] = {"plain": PlainScore}


def _rows(encoder: TextEncoder, candidates: Candidates) -> list[tuple[int, ...]]:
    if not len(candidates):
        return []
    rows = candidates.token_rows
    if rows is None:
        rows = encoder.tokenize(encoder.preprocess(candidates.texts()))
    return [tuple(row) for row in rows]


def _one_each(what: str, given: int, prompts: int) -> None:
    if given != prompts:
        raise ValueError(
            f"got {given} {what} for {prompts} bound prompts: give one a prompt (Candidates.none() where finished)"
        )
