"""The default: the exact search where it can be afforded, a beam elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from leaf_diffusion.attacks.base import Allowed
from leaf_diffusion.attacks.charmer import Charmer
from leaf_diffusion.attacks.exhaustive import every_edit
from leaf_diffusion.attacks.search import Iterates
from leaf_diffusion.text import neighbours


@dataclass(frozen=True, kw_only=True)
class ExactOrBeam(Charmer):
    """For each prompt the strongest search that its length affords. The result says which it was (`AttackResult.exact`).

    One edit: every text of a prompt of at most ``exact_up_to`` characters is scored, as by `Exhaustive`, so that the result is
    exact; about 191 queries a character. Longer prompts are given to Charmer with a beam and several allowed probes, which
    on robust encoders finds more than the paper's parameters with fewer queries a round (docs/LOG.md, "Strength and
    intervals"); at one edit about 10 a character and 960.

    Each further edit: a round of that beam from the best texts of the round before, the exact one too, for about five times
    960 queries and 50 a character. Its result is the best that was found.

    (AutoAttack is another thing: an ensemble of attacks on images, Croce and Hein 2020.)
    """

    name: ClassVar[str] = "exact-or-beam"
    exact_up_to: int = 80
    """Characters up to which a prompt's single edits are all scored."""
    n_positions: int = 10
    beam: int = 5
    probe: str = " xe1-"

    def exact(self, prompt: str, k: int) -> bool:
        return k <= 1 and len(prompt) <= self.exact_up_to

    def most_queries(self, prompt: str, k: int) -> int:
        short = k and len(prompt) <= self.exact_up_to
        first = len(neighbours(prompt, self.alphabet)) - self._round_queries(len(prompt)) if short else 0
        return super().most_queries(prompt, k) + first

    def _round(self, active: list[int], state: Iterates, allowed: Allowed, number: int) -> None:
        short = [i for i in active if number == 1 and len(state.texts[i]) <= self.exact_up_to]
        for i in short:
            every_edit(i, state, allowed, self.alphabet)
        super()._round([i for i in active if i not in short], state, allowed, number)
