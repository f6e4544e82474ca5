"""Charmer, the paper's test-time attack (Abad Rocamora et al., ICML 2024; paper, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from leaf_diffusion.attacks.base import (
    Allowed,
    Attack,
    AttackResult,
    OnStep,
    Outcome,
    Problem,
    check_k,
    check_prompts,
    verify,
)
from leaf_diffusion.attacks.search import Iterates, best_few
from leaf_diffusion.text import ALPHABET, Candidates, Constraint, n_slots, present, slot_edits

if TYPE_CHECKING:
    from leaf_diffusion.scoring.scorer import AnyScorer


def probes(text: str, slots: Sequence[int] | None = None) -> Candidates:
    """The test character in each of ``slots`` (default: all 2|S|+1): a space, or deletion where a space stands."""
    chosen = np.arange(n_slots(text)) if slots is None else np.array(slots, dtype=np.int64)
    return Candidates.edits(text, chosen, np.where(present(text)[chosen] == ord(" "), -1, ord(" ")))


@dataclass(frozen=True, kw_only=True)
class Charmer(Attack):
    """Greedy rounds of one edit each, ``k`` in all; a round has two stages.

    Stage 1 probes all 2|S|+1 slots of the current sentence with a test character and keeps the ``n_positions`` best.
    Probes only rank positions and are never returned, so the constraint does not apply to them. Stage 2 scores the
    allowed ones of all characters of ``alphabet``, and deletion, in those slots; the best replaces the current
    sentence if it scores higher. A prompt whose objective is reached is asked no further. At most 2|S|+1 +
    n_positions * (|alphabet|+1) queries a round.
    """

    name: ClassVar[str] = "charmer"
    no_result: ClassVar[frozenset[str]] = frozenset({"batch_prompts"})
    n_positions: int = 20
    """Positions that stage 1 keeps a round."""
    alphabet: str = ALPHABET
    """The characters that stage 2 tries."""
    batch_prompts: int = 16
    """Sentences attacked side by side (speed and memory only)."""

    def __post_init__(self) -> None:
        if self.n_positions < 1 or self.batch_prompts < 1:
            raise ValueError(
                f"n_positions and batch_prompts must be at least 1, got {self.n_positions} and {self.batch_prompts}"
            )

    def run(self, problem: Problem) -> list[Outcome]:
        return list(self._rounds(problem)[problem.k][0])

    def path(
        self,
        prompts: Sequence[str],
        scorer: AnyScorer,
        ks: Sequence[int] = (1, 2),
        *,
        constraint: Constraint | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> dict[int, list[AttackResult]]:
        """The results at several ``k`` for the price of the largest: what one call a ``k`` would return."""
        prompts = check_prompts(prompts)
        for k in ks:
            check_k(k)
        score = scorer.bind(prompts)
        most = max(ks, default=0)
        rounds = self._rounds(Problem.of(prompts, score, most, constraint=constraint, seed=seed, on_step=on_step))
        return {k: verify(prompts, *rounds[k], scorer, k=k, constraint=constraint) for k in ks}

    def _rounds(self, problem: Problem) -> list[tuple[list[str], list[int]]]:
        """Texts and queries of all prompts after 0, 1, ... k rounds."""
        prompts, score, k = problem.prompts, problem.score, problem.k
        state = Iterates(prompts, score)
        after = [(list(prompts), [0] * len(prompts)) for _ in range(k + 1)]
        for first in range(0, len(prompts), self.batch_prompts):
            batch = range(first, min(first + self.batch_prompts, len(prompts)))
            for done in range(1, k + 1):
                self._round([i for i in batch if not state.finished[i]], state, problem.allowed)
                texts, queries = after[done]
                for i in batch:
                    texts[i], queries[i] = state.texts[i], score.queries[i]
                problem.tell(first * k + done * len(batch), len(prompts) * k)
        return after

    def _round(self, active: list[int], state: Iterates, allowed: Allowed) -> None:
        ranking = state.measure({i: probes(state.texts[i]) for i in active}, best=self.n_positions)
        candidates = {}
        for i, scores in ranking.items():
            everything = slot_edits(state.texts[i], sorted(best_few(scores, self.n_positions)), self.alphabet)
            candidates[i] = everything[allowed(i, state.texts[i], everything)]
        state.advance(candidates)
