"""Scores of candidate prompts: the plain scorer, which is the definition every faster one is tested against."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from leaf_diffusion.encoders.base import Hidden, TextEncoder
from leaf_diffusion.encoders.causal import NotUnderstood
from leaf_diffusion.scoring.groups import on_device
from leaf_diffusion.scoring.objectives import Drift, Goal, Objective
from leaf_diffusion.scoring.prefix_forest import PrefixForest, autocast_dtype, screening_dtype
from leaf_diffusion.text.edits import Candidates

Row = tuple[int, ...]
Batches = Callable[[Sequence[Row]], Iterable[tuple[Sequence[Row], Tensor]]]
"""Distinct rows to parts of them with their features [n, d]."""
Asked = Mapping[int, Sequence[Row]]
"""Prompts, by their index, and the rows to be scored for each."""
Fetch = Callable[[], dict[int, Tensor]]
"""Waits for scores that were started: those of each prompt, on the CPU."""
SCREENED = 48
"""Candidates of a prompt that screening scores again in full, at most; a quarter of few."""
TOGETHER = 16_384
"""Candidates that are tokenized before their scores are started."""
CPU_TOKENS = 4096
"""Tokens computed at once on a CPU: more do not fit its caches."""
GPU_TOKENS = 1 << 16
"""Tokens computed at once on a GPU: with more its products get no faster."""
MAX_BYTES = 1 << 29
"""The bound of the activations where none is given; on a CUDA device it is half of the memory that is free."""


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

    def rows(self, candidates: Sequence[Candidates]) -> list[list[Row]]: ...
    def score_rows(self, asked: Sequence[Sequence[Row]]) -> list[Float[Tensor, " _len"]]: ...


class AnyScorer(Protocol):
    """What attacks take: `Scorer` or `MeanScorer`."""

    @property
    def name(self) -> str: ...
    @property
    def encoder(self) -> TextEncoder: ...
    def bind(self, prompts: Sequence[str]) -> BoundScore: ...


class Scorer:
    """Scores candidates by an objective on one encoder.

    `engine`: "prefix" computes shared beginnings of candidates once (`prefix_forest.py`), "plain" forwards each
    candidate; the scores are the same but for rounding. A tower that the engine does not understand is scored plainly,
    with a warning. `precision`: "fp32" computes in the encoder's own precision, "screen" scores all candidates in
    bfloat16 (float16 on GPUs without it) and the best of each prompt, `SCREENED` at most, again in the encoder's own,
    so that the best score is exact; the others are only ranked. `max_bytes` bounds the activations of a forward pass
    (default: `MAX_BYTES`, on a CUDA device half of what is free).
    """

    def __init__(
        self,
        encoder: TextEncoder,
        objective: Objective | None = None,
        engine: Literal["prefix", "plain"] = "prefix",
        precision: Literal["fp32", "screen"] = "fp32",
        max_bytes: int | None = None,
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"unknown engine {engine!r}; available: {', '.join(sorted(ENGINES))}")
        if precision not in ("fp32", "screen"):
            raise ValueError(f'unknown precision {precision!r}; choose "fp32" or "screen"')
        if precision == "screen" and engine == "plain":
            raise ValueError('precision="screen" belongs to engine="prefix"; the plain engine computes all in full')
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
        self.encoder, self.engine, self.precision, self.max_bytes = encoder, engine, precision, max_bytes
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
        self.encoder, self.prompts = scorer.encoder, prompts
        self.max_bytes = scorer.max_bytes or _spare(self.encoder.device)
        self.feature = scorer.objective.feature
        self.goals: list[Goal] = scorer.objective.goals(self.encoder, prompts)
        self.queries = [0] * len(prompts)

    def __call__(self, candidates: Sequence[Candidates]) -> list[Float[Tensor, " _len"]]:
        """Scores, float32 on the CPU, one tensor a prompt; an empty `Candidates` gives an empty one."""
        _one_each("candidate lists", len(candidates), len(self.prompts))
        with torch.inference_mode():
            asked, fetches = dict[int, Sequence[Row]](), []
            # some prompts at a time: a GPU computes them while the next ones are tokenized
            for some in _together(candidates):
                part = self._read({i: self._rows(i, candidates[i]) for i in some})
                fetches.append(self._start(part))
                asked |= part
            scores = self._finish(asked, {i: each for fetch in fetches for i, each in fetch().items()})
        return [scores[i] for i in range(len(candidates))]

    def rows(self, candidates: Sequence[Candidates]) -> list[list[Row]]:
        """The candidates' token rows, counted as queries."""
        _one_each("candidate lists", len(candidates), len(self.prompts))
        return [self._rows(i, each) for i, each in enumerate(candidates)]

    def score_rows(self, asked: Sequence[Sequence[Row]]) -> list[Float[Tensor, " _len"]]:
        """Scores of token rows, one list a prompt."""
        with torch.inference_mode():
            read = self._read(dict(enumerate(asked)))
            scores = self._finish(read, self._start(read)())
        return [scores[i] for i in range(len(asked))]

    def _rows(self, i: int, candidates: Candidates) -> list[Row]:
        self.queries[i] += len(candidates)
        return self.encoder.tokenize_candidates(candidates) if len(candidates) else []

    def _read(self, asked: Asked) -> Asked:
        """What of the rows is read."""
        return asked

    def _start(self, asked: Asked) -> Fetch:
        """Start the scores of some prompts' rows, as read."""
        return self._gather(asked, self._batches)

    def _finish(self, asked: Asked, found: dict[int, Tensor]) -> dict[int, Tensor]:
        """The scores that count, from those that were started for all prompts."""
        return found

    def _gather(self, asked: Asked, batches: Batches) -> Fetch:
        """Scores of each prompt's rows, each distinct row computed once, whoever asks for it."""
        owners: dict[Row, list[int]] = {}
        for i, rows in asked.items():
            for row in dict.fromkeys(rows):
                owners.setdefault(row, []).append(i)
        places: dict[int, dict[Row, int]] = {i: {} for i in asked}
        pieces: dict[int, list[Tensor]] = {i: [] for i in asked}
        for batch, features in batches(list(owners)):
            positions: dict[int, list[int]] = {}
            for position, row in enumerate(batch):
                for i in owners[row]:
                    positions.setdefault(i, []).append(position)
                    places[i][row] = len(places[i])
            indices = on_device([np.array(chosen) for chosen in positions.values()], features.device)
            for (i, chosen), index in zip(positions.items(), indices, strict=True):
                mine = features if len(chosen) == len(batch) else features[index]
                pieces[i].append(self.goals[i](mine).float())

        def fetch() -> dict[int, Tensor]:
            # one transfer for everything: each would wait for the device
            flat = torch.cat([piece for each in pieces.values() for piece in each]).cpu() if owners else torch.empty(0)
            scores = flat.split([len(each) for each in places.values()])
            return {
                i: mine[torch.tensor([places[i][row] for row in rows], dtype=torch.long)]
                for mine, (i, rows) in zip(scores, asked.items(), strict=True)
            }

        return fetch

    def _batches(self, rows: Sequence[Row]) -> Iterator[tuple[Sequence[Row], Tensor]]:
        everything = isinstance(self.feature, Hidden) and self.feature.positions == "all"
        # per token: states, normed, queries, keys, values, attention, and the MLP's inner layer twice
        most = self._at_once(16 * self.encoder.token_embedding().shape[1] * self.encoder.dtype.itemsize)
        batch: list[Row] = []
        for row in sorted(rows, key=lambda row: (len(row), row)):  # the row at hand is the batch's longest
            length = self.encoder.context_length if everything else len(row)
            if batch and (len(batch) + 1) * length > most:
                yield batch, self.encoder.features(batch, self.feature)
                batch = []
            batch.append(row)
        if batch:
            yield batch, self.encoder.features(batch, self.feature)

    def _at_once(self, bytes_per_token: int) -> int:
        """How many tokens are computed at once."""
        most = CPU_TOKENS if self.encoder.device.type == "cpu" else GPU_TOKENS
        return max(1, min(most, self.max_bytes // bytes_per_token))

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
        return [float(scores[0]) for scores in self.score_rows([[tuple(row)] for row in rows])]

    def solved(self, i: int, score: float) -> bool:
        return self.goals[i].solved(score)


class PrefixScore(PlainScore):
    """`PlainScore` on the prefix forest of the tower as it was when bound."""

    def __init__(self, scorer: Scorer, prompts: list[str]) -> None:
        super().__init__(scorer, prompts)
        device, own = self.encoder.device, self.encoder.dtype
        self._exact = PrefixForest(self.encoder, autocast_dtype(device) or own)
        screened = scorer.precision == "screen" and own == torch.float32
        self._rough = PrefixForest(self.encoder, screening_dtype(device)) if screened else None

    def _read(self, asked: Asked) -> Asked:
        if isinstance(self.feature, Hidden):
            return asked
        eos = self._exact.parts.eos_id  # whatever stands behind the first end-of-text is not read
        return {i: [row[: row.index(eos) + 1] for row in rows] for i, rows in asked.items()}

    def _start(self, asked: Asked) -> Fetch:
        return self._gather(asked, self._on(self._exact if self._rough is None else self._rough))

    def _finish(self, asked: Asked, found: dict[int, Tensor]) -> dict[int, Tensor]:
        """Screened scores with the best of each prompt computed in full, those of all prompts together."""
        if self._rough is None:
            return found
        best = {
            i: scores.topk(min(len(scores), max(len(scores) // 4, 12), SCREENED)).indices for i, scores in found.items()
        }
        again = {i: [asked[i][j] for j in chosen.tolist()] for i, chosen in best.items()}
        for i, fine in self._gather(again, self._on(self._exact))().items():
            scores, chosen = found[i], best[i]
            if len(scores) > len(chosen):  # whatever was not looked at again stays behind what was
                scores.clamp_(max=float(fine.min()) - 1e-6 * abs(float(fine.min())))
            scores[chosen] = fine
        return found

    def _on(self, forest: PrefixForest) -> Batches:
        nodes = self._at_once(forest.bytes_per_node)
        return lambda rows: forest.batches(rows, self.feature, nodes)


def _prefix_or_plain(scorer: Scorer, prompts: list[str]) -> PlainScore:
    try:
        return PrefixScore(scorer, prompts)
    except NotUnderstood as error:
        _warn_once(f"{scorer.encoder.name} is scored plainly, which is slow: {error}")
        return PlainScore(scorer, prompts)


# engine name -> what `Scorer.bind` returns
ENGINES: dict[str, Callable[[Scorer, list[str]], TowerScore]] = {"prefix": _prefix_or_plain, "plain": PlainScore}


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def _spare(device: torch.device) -> int:
    """Bytes for activations where no bound is given."""
    if device.type != "cuda":
        return MAX_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, (free + idle) // 2)


def _together(candidates: Sequence[Candidates]) -> Iterator[list[int]]:
    """Prompts in groups of few candidates."""
    some, size = list[int](), 0
    for i, each in enumerate(candidates):
        if some and size + len(each) > TOGETHER:
            yield some
            some, size = [], 0
        some.append(i)
        size += len(each)
    if some:
        yield some


def _one_each(what: str, given: int, prompts: int) -> None:
    if given != prompts:
        raise ValueError(
            f"got {given} {what} for {prompts} bound prompts: give one a prompt (Candidates.none() where finished)"
        )
