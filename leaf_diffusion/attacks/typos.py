"""Random typos: what happens without an attacker, and the control that a trained defence has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from leaf_diffusion.attacks.base import Allowed, Attack, Outcome, Problem
from leaf_diffusion.text import neighbours, random_edits

if TYPE_CHECKING:
    pass

_DRAWS = 32


@dataclass(frozen=True, kw_only=True)
class RandomTypos(Attack):
    """``k`` random allowed edits, each a uniform slot and a uniform character or deletion; nothing is scored."""

    name: ClassVar[str] = "random-typos"

    def run(self, problem: Problem) -> list[Outcome]:
        texts: list[Outcome] = []
        for i, prompt in enumerate(problem.prompts):
            text = prompt
            for _ in range(problem.k):
                text = _edit_once(i, text, problem.allowed, problem.rngs[i])
            texts.append(text)
            problem.tell((i + 1) * problem.k, len(problem.prompts) * problem.k)
        return texts


def _edit_once(i: int, text: str, allowed: Allowed, rng: np.random.Generator) -> str:
    draws = random_edits(text, _DRAWS, rng)
    hits = np.flatnonzero(allowed(i, text, draws))
    if not len(hits):  # a strict constraint: list what it leaves
        draws = neighbours(text)
        hits = np.flatnonzero(allowed(i, text, draws))
        rng.shuffle(hits)
    return draws.text(int(hits[0])) if len(hits) else text
