"""The plain scorer, which is the definition every faster one is tested against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.scoring.objectives import Goal, Objective
from leaf_diffusion.text import Candidates
from leaf_diffusion.tokens.token_rows import Row

Precision = Literal["fp32", "screen", "half"]

CPU_TOKENS = 4096
"""Tokens computed at once on a CPU: more do not fit its caches."""
GPU_TOKENS = 1 << 16
"""Tokens computed at once on a GPU: with more its products get no faster."""
MAX_BYTES = 1 << 29
"""The bound of the activations where none is given; on a CUDA device it is half of the memory that is free."""


class PlainScore:
    """Deduplicated token rows, sorted by length, in batches trimmed to their longest row.

    `precision` and `max_bytes` as in `Scorer`; precision "fp32" is the only one here.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        objective: Objective,
        prompts: list[str],
        precision: Precision = "fp32",
        max_bytes: int | None = None,
    ) -> None:
        self.encoder, self.prompts, self.precision = encoder, prompts, precision
        self.max_bytes = max_bytes or _spare(encoder.device)
        self.feature = objective.feature
        self.goals: list[Goal] = objective.goals(encoder, prompts)
        self.queries = [0] * len(prompts)

    def __call__(self, candidates: Sequence[Candidates], *, best: int = 1) -> list[Float[Tensor, " _len"]]:
        """Scores, float32 on the CPU, one tensor a prompt; an empty `Candidates` gives an empty one."""
        return self.score_rows(self.rows(candidates), best=best)

    def rows(self, candidates: Sequence[Candidates]) -> Sequence[Sequence[Row]]:
        """The candidates' token rows, counted as queries."""
        self.count(candidates)
        return [self.encoder.tokenize_candidates(each) if len(each) else [] for each in candidates]

    def score_rows(self, asked: Sequence[Sequence[Row]], *, best: int = 1) -> list[Float[Tensor, " _len"]]:
        """Scores of token rows, one list a prompt; each distinct row is computed once, whoever asks for it."""
        owners: dict[Row, list[int]] = {}
        for i, rows in enumerate(asked):
            for row in dict.fromkeys(rows):
                owners.setdefault(row, []).append(i)
        places: list[dict[Row, int]] = [{} for _ in asked]
        pieces: list[list[Tensor]] = [[] for _ in asked]
        with torch.inference_mode():
            for batch, features in self._batches(list(owners)):
                mine: dict[int, list[int]] = {}
                for position, row in enumerate(batch):
                    for i in owners[row]:
                        mine.setdefault(i, []).append(position)
                        places[i][row] = len(places[i])
                for i, positions in mine.items():
                    pieces[i].append(self.goals[i](features[torch.tensor(positions, device=features.device)]).float())
            # one transfer for everything: each would wait for the device
            flat = torch.cat([piece for each in pieces for piece in each]).cpu() if owners else torch.empty(0)
        return self.checked(
            scores[torch.tensor([place[row] for row in rows], dtype=torch.long)]
            for scores, place, rows in zip(flat.split([len(each) for each in places]), places, asked, strict=True)
        )

    def checked(self, scores: Iterable[Tensor]) -> list[Tensor]:
        """The scores of each prompt; ValueError that names the encoder and the prompt of one that is NaN or infinite."""
        found = list(scores)
        if not found or torch.isfinite(torch.cat(found)).all():
            return found
        for prompt, each in zip(self.prompts, found, strict=True):
            if not torch.isfinite(each).all():
                raise ValueError(f"{self.encoder.name}: a candidate of the prompt {prompt!r} scores NaN or infinity")
        return found

    def count(self, candidates: Sequence[Candidates]) -> None:
        """Count the candidates as queries."""
        one_each("candidate lists", len(candidates), len(self.prompts))
        self.queries = [count + len(each) for count, each in zip(self.queries, candidates, strict=True)]

    def _batches(self, rows: Sequence[Row]) -> Iterator[tuple[Sequence[Row], Tensor]]:
        # per token: states, normed, queries, keys, values, attention, and the MLP's inner layer twice
        most = self.at_once(16 * self.encoder.token_embedding().shape[1] * self.encoder.dtype.itemsize)
        batch: list[Row] = []
        for row in sorted(rows, key=lambda row: (len(row), row)):  # the row at hand is the batch's longest
            length = self.encoder.computed(len(row), self.feature)
            if batch and (len(batch) + 1) * length > most:
                yield batch, self.encoder.features(batch, self.feature)
                batch = []
            batch.append(row)
        if batch:
            yield batch, self.encoder.features(batch, self.feature)

    def at_once(self, bytes_per_token: int) -> int:
        """How many tokens are computed at once."""
        most = CPU_TOKENS if self.encoder.device.type == "cpu" else GPU_TOKENS
        return max(1, min(most, self.max_bytes // bytes_per_token))

    def gradient(self, token_rows: Sequence[Sequence[int]]) -> list[Float[Tensor, "_len vocab"]]:
        """d score / d one-hot token for one row a prompt: what a token-level attack ranks replacements by."""
        one_each("token rows", len(token_rows), len(self.prompts))
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
        return [float(scores[0]) for scores in self.score_rows([[tuple(row)] for row in rows])]

    def solved(self, i: int, score: float) -> bool:
        return self.goals[i].solved(score)


def _spare(device: torch.device) -> int:
    """Bytes for activations where no bound is given."""
    if device.type != "cuda":
        return MAX_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, (free + idle) // 2)


def one_each(what: str, given: int, prompts: int) -> None:
    """ValueError unless there is one a prompt."""
    if given != prompts:
        raise ValueError(
            f"got {given} {what} for {prompts} bound prompts: give one a prompt (Candidates.none() where finished)"
        )
