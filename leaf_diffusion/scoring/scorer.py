"""Scores of candidate prompts: what attacks ask, and the choice of the engine that answers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Literal, Protocol, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.causal import UnsupportedTowerError
from leaf_diffusion.scoring.objectives import Drift, Objective
from leaf_diffusion.scoring.plain import PlainScore, Precision
from leaf_diffusion.scoring.prefix import PrefixScore
from leaf_diffusion.scoring.prefix_forest import half_dtype, screening_dtype
from leaf_diffusion.text.edits import Candidates


class BoundScore(Protocol):
    """A scorer bound to its prompts. `best`: how many of a prompt's best candidates the caller goes on with; screening scores
    these in full."""

    queries: list[int]  # candidates scored for each prompt; duplicates count as asked

    def __call__(self, candidates: Sequence[Candidates], *, best: int = 1) -> list[Float[Tensor, " _len"]]: ...
    def gradient(self, token_rows: Sequence[Sequence[int]]) -> list[Float[Tensor, "_len vocab"]]: ...
    def clean(self) -> list[float]: ...
    def solved(self, i: int, score: float) -> bool: ...


class Reader(Protocol):
    """What an attack's results say of a text: as what an encoder is given it, its tokens, and whether these are cut."""

    name: str

    def preprocess(self, texts: Sequence[str]) -> list[str]: ...
    def tokenize(self, texts: Sequence[str]) -> list[list[int]]: ...
    def is_truncated(self, texts: Sequence[str]) -> list[bool]: ...


class AnyScorer(Protocol):
    """What attacks take: `Scorer`, `MeanScorer` or `diffusion.PipelineScorer`."""

    @property
    def name(self) -> str: ...
    @property
    def objective_name(self) -> str: ...
    @property
    def encoder(self) -> Reader: ...
    @property
    def in_full(self) -> bool:
        """Whether every score is of the encoder's own precision."""

    def bind(self, prompts: Sequence[str]) -> BoundScore: ...


class Scorer:
    """Scores candidates by an objective on one encoder.

    `engine`: "prefix" computes shared beginnings of candidates once (`prefix_forest.py`), "plain" forwards each
    candidate; the scores are the same but for rounding. A tower that the engine does not understand is scored
    plainly, with a warning; a bidirectional one (T5, BERT), in which nothing could be shared, plainly and in full.
    `precision`: "fp32" computes in the encoder's own precision, "screen" scores all candidates in
    bfloat16 (float16 on GPUs without it, int8 on CPUs without it) and the best of each prompt, `prefix.SCREENED` at most,
    again in the encoder's own, so that the best score is exact; the others are only ranked. "half" stops before the second
    step: all scores are rough, which an attack in a training can live with; on CPUs without bfloat16 it is float32, with a
    warning. `max_bytes` bounds the activations of a forward pass
    (default: `plain.MAX_BYTES`, on a CUDA device half of what is free).
    """

    def __init__(
        self,
        encoder: TextEncoder,
        objective: Objective | None = None,
        engine: Literal["prefix", "plain"] = "prefix",
        precision: Precision = "fp32",
        max_bytes: int | None = None,
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"unknown engine {engine!r}; available: {', '.join(sorted(ENGINES))}")
        if precision not in get_args(Precision):
            raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(get_args(Precision))}")
        if precision != "fp32" and engine == "plain":
            raise ValueError(
                f'precision="{precision}" belongs to engine="prefix"; the plain engine computes all in full'
            )
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
        self.encoder, self.engine, self.precision, self.max_bytes = encoder, engine, precision, max_bytes
        self.objective: Objective = Drift("l2", feature=encoder.own_feature) if objective is None else objective

    @property
    def name(self) -> str:
        return f"{self.encoder.name}/{self.objective_name}"

    @property
    def objective_name(self) -> str:
        """What the scores are of, whatever the encoder is called."""
        return self.objective.name

    @property
    def in_full(self) -> bool:
        return self.precision == "fp32"

    def bind(self, prompts: Sequence[str]) -> PlainScore:
        """The score of each prompt's candidates; the clean features are computed here."""
        if isinstance(prompts, str):
            raise TypeError("expected a list of prompts, got one string: put it in a list")
        rough = {"half": half_dtype, "screen": screening_dtype}.get(self.precision)
        if rough and rough(self.encoder.device) == self.encoder.dtype == torch.float32:
            _warn_once(f'precision="{self.precision}": this CPU has no products in bfloat16, all is scored in float32')
        what = (self.encoder, self.objective, list(prompts), self.precision, self.max_bytes)
        if not self.encoder.causal:
            return PlainScore(*what)
        try:
            return ENGINES[self.engine](*what)
        except UnsupportedTowerError as error:
            _warn_once(f"{self.encoder.name} is scored plainly, which is slow: {error}")
            return PlainScore(*what)


ENGINES: dict[str, type[PlainScore]] = {"prefix": PrefixScore, "plain": PlainScore}


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)
