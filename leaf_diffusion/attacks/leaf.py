"""The LEAF attack, cheap enough for adversarial training (paper, section 3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from leaf_diffusion.attacks.base import Allowed, Attack, Outcome, Problem
from leaf_diffusion.attacks.charmer import probes
from leaf_diffusion.attacks.search import Iterates, best_first
from leaf_diffusion.text import Candidates, n_slots, slot_edits


@dataclass(frozen=True, kw_only=True)
class LeafAttack(Attack):
    """Charmer's two stages with a constant budget, the whole batch at once: 2 * B * rho queries for each of the ``k``
    rounds.

    Stage 1 probes ``rho`` random slots and keeps the best one at which some edit is allowed. Stage 2 scores ``rho``
    random allowed characters there (deletion is one); the best replaces the sentence if it scores higher. Draws are
    distinct as far as there are ``rho`` different ones, and repeat beyond that, so that the budget stays constant.

    ``slots``: how many slots stage 1 probes, ``rho`` unless given. The more slots, the more often it is the same one,
    the sentence's weakest, that wins; fewer slots and many characters attack a sentence in more places.
    """

    name: ClassVar[str] = "leaf"
    rho: int = 50
    """Candidates of each of the two stages."""
    slots: int | None = None
    """Slots that stage 1 probes. Default: rho."""

    def __post_init__(self) -> None:
        for name, value in (("rho", self.rho), ("slots", self.slots)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def run(self, problem: Problem) -> list[Outcome]:
        state = Iterates(problem.prompts, problem.score)
        for done in range(1, problem.k + 1):
            active = [i for i in range(len(problem.prompts)) if not state.finished[i]]
            drawn = {i: _draw(n_slots(state.texts[i]), self.slots or self.rho, problem.rngs[i]) for i in active}
            slots = {i: np.sort(some).tolist() for i, some in drawn.items()}
            ranking = state.measure({i: probes(state.texts[i], slots[i]) for i in active})
            candidates = {}
            for i, scores in ranking.items():
                ranked = (slots[i][j] for j in best_first(scores))
                candidates[i] = self._characters(i, state.texts[i], ranked, problem.allowed, problem.rngs[i])
            state.advance(candidates)
            problem.tell(done * len(problem.prompts), problem.k * len(problem.prompts))
        return list(state.texts)

    def _characters(
        self, i: int, text: str, slots: Iterable[int], allowed: Allowed, rng: np.random.Generator
    ) -> Candidates:
        tried = set()
        for slot in slots:
            if slot in tried:
                continue
            tried.add(slot)
            candidates = slot_edits(text, [slot])
            fitting = np.flatnonzero(allowed(i, text, candidates))
            if len(fitting):
                return candidates[fitting[np.sort(_draw(len(fitting), self.rho, rng))]]
        return Candidates.none()


def _draw(n: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``size`` of ``range(n)`` in random order, each as often as any other (give or take one)."""
    return np.concatenate([rng.permutation(n) for _ in range(-(-size // n))])[:size]
