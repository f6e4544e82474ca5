"""Random typos: what happens without an attacker, and the control that a trained defence has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from leaf_diffusion.attacks.base import Allowed, Attack, OnStep, Outcome
from leaf_diffusion.text import neighbours, random_edits

if TYPE_CHECKING:
    from leaf_diffusion.scoring.scorer import BoundScore

_DRAWS = 32


@dataclass(frozen=True, kw_only=True)
class RandomTypos(Attack):
    """``k`` random allowed edits, each a uniform slot and a uniform character or deletion; nothing is scored."""

    name: ClassVar[str] = "random-typos"

    def run(
        self,
        prompts: Sequence[str],
        score: BoundScore,
        *,
        k: int,
        allowed: Allowed,
        rngs: Sequence[np.random.Generator],
        on_step: OnStep | None,
    ) -> list[Outcome]:
        texts: list[Outcome] = []
        for i, prompt in enumerate(prompts):
            text = prompt
            for _ in range(k):
                text = _edit_once(i, text, allowed, rngs[i])
            texts.append(text)
            if on_step is not None:
                on_step((i + 1) * k, len(prompts) * k)
        return texts


def _edit_once(i: int, text: str, allowed: Allowed, rng: np.random.Generator) -> str:
    draws = random_edits(text, _DRAWS, rng)
    hits = np.flatnonzero(allowed(i, text, draws))
    if not len(hits):  # a strict constraint: list what it leaves
        draws = neighbours(text)
        hits = np.flatnonzero(allowed(i, text, draws))
        rng.shuffle(hits)
    return draws.text(int(hits[0])) if len(hits) else text
