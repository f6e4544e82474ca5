"""A genetic search over sets of character edits: what a search that is not greedy says of those that are.

Source: Alzantot et al. 2018 (a population, parents by fitness, crossover, mutation; the best survive), there over words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from leaf_diffusion.attacks.base import Allowed, Attack, Outcome, Problem
from leaf_diffusion.attacks.search import FLOOR, TIE, Iterates, best_first
from leaf_diffusion.text import ALPHABET, Candidates, n_slots

Edits = tuple[tuple[int, str], ...]
"""Edits (slot, character) of a prompt, by slot; "" deletes, insertions into one gap stand in their order."""
DRAWS = 8
"""Times that children are drawn anew in the place of those that are refused or were there before."""


@dataclass(frozen=True, kw_only=True)
class Genetic(Attack):
    """``generations`` of ``population`` children; each is made of the edits of two parents, at most ``k`` of them, and mostly
    mutated: an edit is drawn anew, gets another character, or moves to a place beside. Of parents and children the best
    ``population`` live on, one of each score.

    Every text is new and allowed, so at most population * generations queries, whatever ``k``. A prompt whose objective is
    reached is asked no further.
    """

    name: ClassVar[str] = "genetic"
    population: int = 100
    """Sets of edits that live at a time."""
    generations: int = 30
    """How often children are made and scored."""
    alphabet: str = ALPHABET
    """The characters that edits place."""

    def __post_init__(self) -> None:
        if wrong := [name for name in ("population", "generations") if getattr(self, name) < 1]:
            raise ValueError(f"{wrong[0]} must be at least 1, got {getattr(self, wrong[0])}")
        if not self.alphabet:
            raise ValueError("alphabet needs one character at least")

    def run(self, problem: Problem) -> list[Outcome]:
        prompts, state = problem.prompts, Iterates(problem.prompts, problem.score)
        kinds = [
            _Population(prompt, problem.k, self.alphabet, rng)
            for prompt, rng in zip(prompts, problem.rngs, strict=True)
        ]
        for done in range(1, self.generations + 1):
            active = [i for i in range(len(prompts)) if problem.k and not state.finished[i]]
            children = {i: kinds[i].children(self.population, i, problem.allowed) for i in active}
            for i, scores in state.measure(children, best=self.population).items():
                state.keep(i, children[i], scores)
                kinds[i].select(scores, self.population)
            problem.tell(done * len(prompts), self.generations * len(prompts))
        return list(state.texts)


class _Population:
    """The sets of edits of one prompt, best first, and their scores."""

    def __init__(self, prompt: str, k: int, alphabet: str, rng: np.random.Generator) -> None:
        self._prompt, self._k, self._rng = prompt, k, rng
        self._letters = list(dict.fromkeys(alphabet))
        self._seen, self._members, self._scores = {prompt}, list[Edits](), torch.empty(0)
        self._born, self._drawn = list[Edits](), list[float]()

    def children(self, size: int, i: int, allowed: Allowed) -> Candidates:
        """New texts, all allowed; fewer than ``size`` where few are left."""
        made: dict[str, Edits] = {}
        for _ in range(DRAWS):
            drawn: dict[str, Edits] = {}
            for edits in (self._child() for _ in range(size - len(made))):
                drawn.setdefault(_applied(self._prompt, edits), edits)
            fresh = [text for text in drawn if text not in self._seen]
            self._seen.update(fresh)
            if fresh:
                kept = np.flatnonzero(allowed(i, self._prompt, Candidates.from_texts(fresh)))
                made |= {fresh[j]: drawn[fresh[j]] for j in kept}
            if len(made) == size:
                break
        self._born = list(made.values())
        return Candidates.from_texts(made)

    def select(self, scores: Tensor, size: int) -> None:
        """Of the members and the children, whose scores these are, keep the best, one of each score."""
        everybody, scores = [*self._members, *self._born], torch.cat([self._scores, scores])
        kept, last = list[int](), np.inf
        for j in best_first(scores):
            score = float(scores[j])
            if not kept or last - score > max(TIE * abs(last), FLOOR):
                kept.append(j)
                last = score
            if len(kept) == size:
                break
        self._members, self._scores = [everybody[j] for j in kept], scores[kept]

    def _child(self) -> Edits:
        if not self._members:
            return _sorted(self._edit() for _ in range(self._k))
        edits = list(dict.fromkeys([*self._parent(), *self._parent()]))
        while len(edits) > self._k:
            edits.pop(self._below(len(edits)))
        kind, at = self._below(4), self._below(len(edits))
        slot, letter = edits[at]
        if kind == 0 and len(edits) < self._k:
            edits.append(self._edit())
        elif kind == 0:
            edits[at] = self._edit()
        elif kind == 1:
            edits[at] = slot, self._letter(slot)
        elif kind == 2:
            moved = min(max(slot - 2 + self._below(5), 0), n_slots(self._prompt) - 1)
            edits[at] = moved, letter or self._letter(moved)
        return _sorted(edits)

    def _parent(self) -> Edits:
        """The better of two that are drawn."""
        n = len(self._members)
        return self._members[min(self._below(n), self._below(n))]

    def _edit(self) -> tuple[int, str]:
        slot = self._below(n_slots(self._prompt))
        return slot, self._letter(slot)

    def _letter(self, slot: int) -> str:
        """A character for a slot, or deletion where one stands."""
        number = self._below(len(self._letters) + slot % 2)
        return self._letters[number] if number < len(self._letters) else ""

    def _below(self, n: int) -> int:
        """A random number below n; many are drawn at a time, one alone takes as long."""
        if not self._drawn:
            self._drawn = self._rng.random(1024).tolist()
        return int(self._drawn.pop() * n)


def _sorted(edits: Iterable[tuple[int, str]]) -> Edits:
    """By slot, one edit a character."""
    found: list[tuple[int, str]] = []
    for slot, letter in sorted(edits, key=lambda edit: edit[0]):
        if not found or found[-1][0] != slot or slot % 2 == 0:
            found.append((slot, letter))
    return tuple(found)


def _applied(prompt: str, edits: Edits) -> str:
    parts, at = list[str](), 0
    for slot, letter in edits:
        parts += [prompt[at : slot // 2], letter]
        at = slot // 2 + slot % 2
    return "".join([*parts, prompt[at:]])
