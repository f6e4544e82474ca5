"""The parts of a greedy search: choosing with ties settled, and keeping the best text of each prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leaf_diffusion.text import Candidates

if TYPE_CHECKING:
    from leaf_diffusion.scoring.scorer import BoundScore

TIE = 1e-6
"""Scores this close (relative) are equal: batching alone moves fp32 scores by about as much."""

FLOOR = 1e-6
"""Scores this close (absolute) are equal where positions are ranked or a text has to beat the current one: candidates
that the encoder reads as the clean prompt (case, a spelling defence) differ from it by rounding alone."""


def argbest(scores: Tensor, floor: float = 0.0) -> int:
    """Index of the highest score; scores within ``TIE`` of it (relative) or ``floor`` tie, and the lowest index wins.

    ValueError for no scores or for NaN.
    """
    return _argbest(scores.numpy(force=True), floor)


def _argbest(scores: NDArray[np.floating], floor: float) -> int:
    if not len(scores):
        raise ValueError("no scores to choose from")
    best = float(scores.max())
    if math.isnan(best):
        raise ValueError("a score is NaN: the encoder overflowed, use a higher precision")
    slack = max(TIE * abs(best), floor) if math.isfinite(best) else 0.0
    return int((scores >= best - slack).argmax())


def best_first(scores: Tensor) -> Iterator[int]:
    """Indices from the highest score down, each each chosen among those left; ties (``TIE``, ``FLOOR``) by index."""
    left = scores.numpy(force=True).copy()
    for _ in range(len(left)):
        best = _argbest(left, FLOOR)
        yield best
        left[best] = -np.inf


def best_few(scores: Tensor, n: int) -> list[int]:
    """Indices of the ``n`` highest scores (or all), in the order of ``best_first``."""
    return list(islice(best_first(scores), n))


class Iterates:
    """Where each prompt stands during an optimising attack: its best text so far, its score, if it is finished."""

    def __init__(self, prompts: Sequence[str], score: BoundScore) -> None:
        self.texts = list(prompts)
        self.scores = score.clean() if prompts else []
        self._score = score
        self.finished = [score.solved(i, value) for i, value in enumerate(self.scores)]

    def measure(self, candidates: dict[int, Candidates], best: int = 1) -> dict[int, Tensor]:
        """Score some prompts' candidates, of whose best so many are gone on with; the others have none."""
        if not any(len(c) for c in candidates.values()):
            return {i: torch.empty(0) for i in candidates}
        scores = self._score([candidates.get(i, Candidates.none()) for i in range(len(self.texts))], best=best)
        return {i: scores[i].detach().float().cpu() for i in candidates}

    def advance(self, candidates: dict[int, Candidates]) -> None:
        """Score ``candidates`` and move each prompt to its best one, if that beats where it stands (a tie stays)."""
        for i, scores in self.measure(candidates).items():
            if not len(scores):
                continue
            best = argbest(scores)
            value, current = float(scores[best]), self.scores[i]
            if value > current + max(TIE * abs(current), FLOOR):
                self.texts[i], self.scores[i] = candidates[i].text(best), value
                self.finished[i] = self._score.solved(i, value)
