"""The parts of a greedy search: choosing with ties settled, and keeping the best text of each prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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

PART = 128
"""Candidates of a prompt that are scored first where one that reaches the goal ends the search."""

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


@dataclass(frozen=True)
class Member:
    """A text that the search goes on from, and its score."""

    text: str
    score: float


class Iterates:
    """Where each prompt stands during an optimising attack: its best text so far, its ``width`` best ones (``members``, best
    first), and if it is finished."""

    def __init__(self, prompts: Sequence[str], score: BoundScore, width: int = 1) -> None:
        self.texts = list(prompts)
        self._score, self._width = score, width
        self._ends = [score.solved(i, math.inf) for i in range(len(prompts))]
        self.finished = [
            score.solved(i, self.members[i][0].score) if ends else False for i, ends in enumerate(self._ends)
        ]

    @cached_property
    def members(self) -> list[list[Member]]:
        """Scored when first asked for: a search without an end has its first candidates made before."""
        scores = self._score.clean() if self.texts else []
        return [[Member(text, value)] for text, value in zip(self.texts, scores, strict=True)]

    def measure(self, candidates: Mapping[int, Candidates], best: int = 1) -> dict[int, Tensor]:
        """Score some prompts' candidates, of whose best so many are gone on with; the others have none."""
        scores = self._score([candidates.get(i, Candidates.none()) for i in range(len(self.texts))], best=best)
        return {i: scores[i].detach().float().cpu() for i in candidates}

    def advance(self, candidates: Mapping[int, Candidates]) -> None:
        """Score ``candidates`` and keep the best of them and of the texts at hand (a tie stays).

        Where a goal can be reached they are scored in parts of growing size, all slots in each, and the first part that
        reaches it is the last: whether one does is what counts, and an unprotected encoder flips at once.
        """
        if not any(self._ends[i] for i in candidates):
            for i, mine in self.measure(candidates, best=self._width).items():
                self.keep(i, candidates[i], mine)
            return
        scores = {i: torch.full((len(each),), -math.inf) for i, each in candidates.items()}
        order = {i: _spread(each) for i, each in candidates.items()}
        left, start, size = list(candidates), 0, PART
        while left:
            chosen = {i: order[i][start : start + size] for i in left}
            for i, new in self.measure({i: candidates[i][chosen[i]] for i in left}, best=self._width).items():
                scores[i][torch.from_numpy(chosen[i])] = new
                self.finished[i] = bool(self.reached(i, new).any())
            start, size = start + size, 2 * size
            left = [i for i in left if start < len(candidates[i]) and not self.finished[i]]
        for i, mine in scores.items():
            self.keep(i, candidates[i], mine)

    def reached(self, i: int, scores: Tensor) -> NDArray[np.bool_]:
        """bool [n]: which scores reach the objective of prompt ``i``."""
        if not self._ends[i]:
            return np.zeros(len(scores), dtype=bool)
        return np.array([self._score.solved(i, value) for value in scores.tolist()], dtype=bool)

    def keep(self, i: int, candidates: Candidates, scores: Tensor) -> None:
        """Keep the best of scored candidates of a prompt and of the texts at hand."""
        if not len(scores):
            return
        values = scores.numpy(force=True)
        order = [_argbest(values, 0.0)]
        if self._width > 1:
            order += [j for j in best_few(scores, self._width) if j != order[0]][: self._width - 1]
        old, new = (
            self.members[i],
            [Member(candidates.text(j), float(values[j])) for j in order if values[j] > -math.inf],
        )
        kept = list[Member]()
        while len(kept) < self._width and (old or new):
            later = bool(new) and (not old or new[0].score > old[0].score + max(TIE * abs(old[0].score), FLOOR))
            one, *rest = new if later else old
            old, new = (old, rest) if later else (rest, new)
            if one.text not in (member.text for member in kept):
                kept.append(one)
        self.members[i], self.texts[i] = kept, kept[0].text
        self.finished[i] = self._score.solved(i, kept[0].score)


def _spread(candidates: Candidates) -> NDArray[np.int64]:
    """An order of edits in which each slot's first stand before any slot's second; of other lists their own."""
    slots = candidates.slots
    if slots is None:
        return np.arange(len(candidates))
    by_slot = np.argsort(slots, kind="stable")
    _, firsts, counts = np.unique(slots[by_slot], return_index=True, return_counts=True)
    within = np.empty(len(slots), dtype=np.int64)
    within[by_slot] = np.arange(len(slots)) - np.repeat(firsts, counts)
    return np.argsort(within, kind="stable")
