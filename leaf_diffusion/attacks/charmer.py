"""Charmer, the paper's test-time attack (Abad Rocamora et al., ICML 2024; paper, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

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
    Probes only rank positions, so the constraint does not apply to them. Stage 2 scores the allowed ones of all characters
    of ``alphabet``, and deletion, in those slots; the best replaces the current sentence if it scores higher. At most
    2|S|+1 + n_positions * (|alphabet|+1) queries a round.

    A prompt whose objective is reached is asked no further: the first part of its candidates that reaches it, or a probe
    that is allowed, ends its search and is the result.

    With a ``beam`` the best so many sentences are gone on with, each probed and edited, all in one batch; the queries of
    every round but the first are as many times more. At k=1 nothing changes, at k=2 the result is never worse.
    """

    name: ClassVar[str] = "charmer"
    no_result: ClassVar[frozenset[str]] = frozenset({"batch_prompts"})
    n_positions: int = 20
    """Positions that stage 1 keeps a round."""
    beam: int = 1
    """Sentences that a round goes on with."""
    probe: str = " "
    """The test characters. A space alone is the paper's: what may not be a result ranks positions, too. Of several, with
    deletion, a position is worth its best allowed one, and those are results as well; fewer positions are needed then."""
    alphabet: str = ALPHABET
    """The characters that stage 2 tries."""
    batch_prompts: int = 16
    """Sentences attacked side by side (speed and memory only)."""

    def __post_init__(self) -> None:
        if wrong := [name for name in ("n_positions", "beam", "batch_prompts") if getattr(self, name) < 1]:
            raise ValueError(f"{wrong[0]} must be at least 1, got {getattr(self, wrong[0])}")
        if not self.probe:
            raise ValueError("probe needs one character at least, to rank positions by")

    def most_queries(self, prompt: str, k: int) -> int:
        return sum(
            (self.beam if number > 1 else 1) * self._round_queries(len(prompt) + number - 1)
            for number in range(1, k + 1)
        )

    def _round_queries(self, characters: int) -> int:
        """Of one text."""
        probes = 1 if self.probe == " " else len(set(self.probe)) + 1
        return probes * (2 * characters + 1) + self.n_positions * (len(self.alphabet) + 1)

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
        return {k: verify(self, prompts, *rounds[k], scorer, k=k, constraint=constraint) for k in ks}

    def _rounds(self, problem: Problem) -> list[tuple[list[str], list[int]]]:
        """Texts and queries of all prompts after 0, 1, ... k rounds."""
        prompts, score, k = problem.prompts, problem.score, problem.k
        state = Iterates(prompts, score, self.beam)
        after = [(list(prompts), [0] * len(prompts)) for _ in range(k + 1)]
        for first in range(0, len(prompts), self.batch_prompts):
            batch = range(first, min(first + self.batch_prompts, len(prompts)))
            for done in range(1, k + 1):
                self._round([i for i in batch if not state.finished[i]], state, problem.allowed, done)
                texts, queries = after[done]
                for i in batch:
                    texts[i], queries[i] = state.texts[i], score.queries[i]
                problem.tell(first * k + done * len(batch), len(prompts) * k)
        return after

    def _round(self, active: list[int], state: Iterates, allowed: Allowed, number: int) -> None:
        """The round of this number, from 1."""
        members = {i: [member.text for member in state.members[i]] for i in active}
        probed = {
            i: Candidates.joined([self._probes(i, text, allowed) for text in texts]) for i, texts in members.items()
        }
        ranking = state.measure(probed, best=self.n_positions * self.beam)
        candidates = {}
        for i, scores in ranking.items():
            if self._flipped(i, probed[i], scores, state, allowed):
                continue
            lists, seen = list[Candidates](), set(members[i])
            parts = probed[i].parts
            for text, part, own in zip(members[i], parts, scores.split([len(part) for part in parts]), strict=True):
                everything = slot_edits(text, self._positions(part, own), self.alphabet)
                lists.append(_new(everything[allowed(i, text, everything)], seen if len(members[i]) > 1 else None))
            candidates[i] = Candidates.joined(lists)
        state.advance(candidates)
        if self.probe != " ":
            for i in candidates:
                state.keep(i, probed[i], ranking[i])

    def _probes(self, i: int, text: str, allowed: Allowed) -> Candidates:
        if self.probe == " ":
            return probes(text)
        everything = slot_edits(text, range(n_slots(text)), self.probe)
        return everything[allowed(i, text, everything)]

    def _positions(self, probed: Candidates, scores: Tensor) -> list[int]:
        """The slots of stage 2, in order."""
        if self.probe == " ":
            return sorted(best_few(scores, self.n_positions))
        slots, which = np.unique(probed.slots if probed.slots is not None else [], return_inverse=True)
        best = np.full(len(slots), -np.inf, dtype=np.float32)
        np.maximum.at(best, which, scores.numpy())
        return sorted(int(slots[j]) for j in best_few(torch.from_numpy(best), self.n_positions))

    @staticmethod
    def _flipped(i: int, probed: Candidates, scores: Tensor, state: Iterates, allowed: Allowed) -> bool:
        """Whether an allowed probe reaches the prompt's objective; then it is the result."""
        if not state.reached(i, scores).any():
            return False
        mine = np.concatenate([allowed(i, part.base or "", part) for part in probed.parts])
        fits = mine & state.reached(i, scores)
        if fits.any():
            state.keep(i, probed[fits], scores[torch.from_numpy(fits)])
        return bool(fits.any())


def _new(candidates: Candidates, seen: set[str] | None) -> Candidates:
    """Those whose text was not seen, which they are then."""
    if seen is None:
        return candidates
    texts = candidates.texts()
    fresh = np.array([text not in seen for text in texts], dtype=bool)
    seen.update(texts)
    return candidates[fresh]
