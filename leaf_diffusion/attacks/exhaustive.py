"""Exhaustive search of the single edits: the exact worst case at k=1, the yardstick of the cheaper attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from leaf_diffusion.attacks.base import Attack, Outcome, Problem
from leaf_diffusion.attacks.search import Iterates
from leaf_diffusion.text import neighbours

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class Exhaustive(Attack):
    """Scores every allowed sentence at distance 1 over the 96-entry alphabet, and the clean one; keeps the best.

    About 191 |S| + 95 queries a prompt. A prompt that is solved untouched costs none.
    """

    name: ClassVar[str] = "exhaustive"
    largest_k: ClassVar[int | None] = 1

    def run(self, problem: Problem) -> list[Outcome]:
        if problem.k > 1:
            raise ValueError(
                f"the exhaustive attack is exact for k=1 only (k={problem.k} has millions of candidates): use Charmer"
            )
        state = Iterates(problem.prompts, problem.score)
        for i, prompt in enumerate(problem.prompts if problem.k else []):
            if not state.finished[i]:
                candidates = neighbours(prompt)
                state.advance({i: candidates[problem.allowed(i, prompt, candidates)]})
            problem.tell(i + 1, len(problem.prompts))
        return list(state.texts)
