"""Exhaustive search: the exact worst case within one edit or two, the yardstick of the cheaper attacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from leaf_diffusion.attacks.base import Allowed, Attack, Outcome, Problem
from leaf_diffusion.attacks.search import Iterates
from leaf_diffusion.text import ALPHABET, Candidates, neighbours
from leaf_diffusion.text.two_edits import two_edits

AT_ONCE = 8192
"""Texts two edits away that are collected before they are scored together."""
RATE = 10_000
"""Texts a second that a stated time rests on: about what one CPU core scores on a CLIP 128 wide."""


@dataclass(frozen=True, kw_only=True)
class Exhaustive(Attack):
    """Scores every allowed text within ``k`` edits over ``alphabet`` and deletion, and the clean one; keeps the best.

    k=1: about 191 |S| + 95 queries a prompt. k=2: about half the square of that (8 million for 20 characters), and only
    where that is at most ``max_queries``. A prompt that is solved untouched costs none, and the first part of the texts
    that reaches an objective ends its search.

    A constraint judges the final text against the prompt: what lies between two edits need not be allowed, so an attack that
    goes edit by edit sees a part of these texts. The published rule, which compares each edit with the text before it, is
    taken as far as the final text tells it (its set of words is smaller than the prompt's), which is all that such steps
    reach and more: the result is at least as bad as theirs.
    """

    name: ClassVar[str] = "exhaustive"
    largest_k: ClassVar[int | None] = 2
    no_result: ClassVar[frozenset[str]] = frozenset({"max_queries"})
    alphabet: str = ALPHABET
    """The characters that are inserted and substituted."""
    max_queries: int = 1_000_000
    """Texts of one prompt that k=2 may ask for; more are refused before the search."""

    def exact(self, prompt: str, k: int) -> bool:
        return True

    def most_queries(self, prompt: str, k: int) -> int:
        """About how many texts there are within ``k`` edits; at k=1 exactly, before the constraint."""
        once = len(neighbours(prompt, self.alphabet)) if k else 0
        return once if k < 2 else once + once * once // 2

    def refusal(self, prompts: Sequence[str], k: int) -> str:
        if k < 2 or (reason := super().refusal(prompts, k)):
            return "" if k < 2 else reason
        counts = [self.most_queries(prompt, k) for prompt in prompts]
        if not counts or (most := max(counts)) <= self.max_queries:
            return ""
        each, whole = (timedelta(seconds=count // RATE) for count in (most, sum(counts)))
        return (
            f"k={k} makes about {most:,} texts of {prompts[counts.index(most)][:80]!r}, which take {each} at {RATE:,} a "
            f"second ({whole} for all {len(prompts)} prompts), and max_queries is {self.max_queries:,}: search with charmer "
            f"or exact-or-beam, or allow it by exhaustive:max_queries={most}"
        )

    def run(self, problem: Problem) -> list[Outcome]:
        state = Iterates(problem.prompts, problem.score)
        for i, prompt in enumerate(problem.prompts if problem.k else []):
            if not state.finished[i]:
                every_edit(i, state, problem.allowed, self.alphabet)
            if problem.k > 1:
                for part in _collected(two_edits(prompt, self.alphabet)):
                    if state.finished[i]:
                        break
                    state.advance({i: _allowed(i, prompt, part, problem.allowed)})
            problem.tell(i + 1, len(problem.prompts))
        return list(state.texts)


def every_edit(i: int, state: Iterates, allowed: Allowed, alphabet: str) -> None:
    """Go on with the best of all texts one edit away from where a prompt stands."""
    text = state.texts[i]
    state.advance({i: _allowed(i, text, neighbours(text, alphabet), allowed)})


def _allowed(i: int, prompt: str, candidates: Candidates, allowed: Allowed) -> Candidates:
    """Those that a prompt may end at, by its own rule and not that of the texts between."""
    return Candidates.joined([part[allowed(i, prompt, part)] for part in candidates.parts])


def _collected(lists: Iterator[Candidates]) -> Iterator[Candidates]:
    """The lists joined to `AT_ONCE` at least; empty ones left out."""
    held, size = list[Candidates](), 0
    for each in lists:
        if len(each):
            held, size = [*held, each], size + len(each)
        if size >= AT_ONCE:
            yield Candidates.joined(held)
            held, size = [], 0
    if held:
        yield Candidates.joined(held)
