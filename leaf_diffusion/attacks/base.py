"""What every attack shares: its interface, its randomness, and the check of its results from outside."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast, final

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from leaf_diffusion.text import Candidates, Constraint, distance
from leaf_diffusion.text.decoding import shows
from leaf_diffusion.text.readers.rows import LONGEST_PROMPT

if TYPE_CHECKING:
    from leaf_diffusion.scoring.scorer import AnyScorer, BoundScore

OnStep = Callable[[int, int], None]
"""Progress: (units done, units in all); a unit is one round of one prompt."""

Outcome = str | list[int]
"""What an attack returns for a prompt: a text, or a token row."""


class Allowed(Protocol):
    """The constraint, bound to the prompts."""

    def __call__(self, i: int, current: str, candidates: Candidates) -> NDArray[np.bool_]:
        """bool [n]: which candidates prompt ``i``, now at ``current``, may move to."""


@dataclass(frozen=True)
class AttackResult:
    """One attacked prompt, measured afresh after the attack.

    ``token_ids``: what the encoder reads (begin ... end of text, behind its defence). ``distance``: Levenshtein, in
    code points (in tokens or words for an attack on these). ``queries``: candidates scored. ``success``: whether the
    objective is reached, None where it has no such notion. ``truncated``: the perturbed prompt is longer than the
    encoder's context. ``objective``: what the score is of ("drift(l2, pooled)"). ``exact``: whether nothing that the
    attack was allowed does worse, over its alphabet, as all of it was scored in full; else there may be.
    """

    original: str
    perturbed: str
    token_ids: list[int]
    score: float
    clean_score: float
    distance: int
    queries: int
    success: bool | None
    truncated: bool
    objective: str = ""
    exact: bool = False


@dataclass(frozen=True)
class Problem:
    """What an attack is given: the prompts, their bound score, the distance ``k``, the constraint (``allowed``), a random
    generator a prompt, and whom to tell of progress."""

    prompts: list[str]
    score: BoundScore
    k: int
    allowed: Allowed
    rngs: Sequence[np.random.Generator]
    on_step: OnStep | None = None

    @classmethod
    def of(
        cls,
        prompts: list[str],
        score: BoundScore,
        k: int,
        *,
        constraint: Constraint | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> Problem:
        """The problem of checked prompts."""
        return cls(prompts, score, k, bind_constraint(constraint, prompts), generators(prompts, seed), on_step)

    def tell(self, done: int, total: int) -> None:
        """Tell of progress where somebody asked for it."""
        if self.on_step is not None:
            self.on_step(done, total)


class Attack(ABC):
    """An attack on prompts. A new one implements ``run``; calling it also verifies what ``run`` returned.

    Threat model unless a subclass says otherwise: at most ``k`` characters inserted, deleted or substituted.
    Results depend on the prompt and the seed, never on the other prompts of the call.
    """

    name: ClassVar[str]
    """The name that ``attack_from_name`` knows."""
    distance_per_edit: ClassVar[int] = 1
    """Levenshtein distance that one of the ``k`` edits may make (2 where neighbours are swapped, say)."""
    unit: ClassVar[str] = "character"
    """What ``k`` counts: characters (slips of them, too), words or tokens."""
    largest_k: ClassVar[int | None] = None
    """The largest ``k`` that the attack can be given; None for any."""
    no_result: ClassVar[frozenset[str]] = frozenset()
    """Parameters that change speed and memory only."""

    @classmethod
    def parameters(cls) -> list[str]:
        """The names of the hyper-parameters."""
        return [each.name for each in fields(cls)] if is_dataclass(cls) else []

    @staticmethod
    def measure(prompt: str, perturbed: str) -> int:
        """How far two texts are apart, as the limit of ``k`` edits is counted."""
        return distance(prompt, perturbed)

    def check_constraint(self, name: str) -> None:
        """ValueError for a constraint that leaves the attack nothing; "none" is none."""
        if self.unit == "word" and name != "none":
            raise ValueError(
                f"the attack {self.name} writes other words, which the constraint {name} forbids: take the constraint none"
            )

    @property
    def label(self) -> str:
        """The name that ``attack_from_name`` makes this attack of, hyper-parameters aside."""
        return self.name

    def settings(self) -> dict[str, object]:
        """The hyper-parameters that decide the results, for a run's identity."""
        return {name: getattr(self, name) for name in self.parameters() if name not in self.no_result}

    def exact(self, prompt: str, k: int) -> bool:
        """Whether the attack scores every text that ``prompt`` may become within ``k`` edits (or, where an objective has an
        end, until one reaches it)."""
        return False

    def most_queries(self, prompt: str, k: int) -> int | None:
        """How many queries ``prompt`` may take, before the constraint; None where the attack does not say."""
        return None

    def refusal(self, prompts: Sequence[str], k: int) -> str:
        """Why the attack cannot be given ``k``, or not on these prompts, and what to do; "" where it can."""
        return f"takes k={self.largest_k} at most" if self.largest_k is not None and k > self.largest_k else ""

    @final
    def __call__(
        self,
        prompts: Sequence[str],
        scorer: AnyScorer,
        *,
        k: int = 1,
        constraint: Constraint | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> list[AttackResult]:
        """Attack ``prompts`` within distance ``k`` under ``constraint``, one result a prompt.

        TypeError for one string instead of a list; ValueError for an empty prompt, a negative ``k`` or one that is beyond
        the attack, or a constraint that it cannot keep; RuntimeError if the attack broke its own limits.
        """
        prompts = check_prompts(prompts)
        check_k(k)
        self.check_constraint("none" if constraint is None else constraint.name)
        if not prompts:
            return []
        if reason := self.refusal(prompts, k):
            raise ValueError(f"the attack {self.name}: {reason}")
        score = scorer.bind(prompts)
        outcomes = self.run(Problem.of(prompts, score, k, constraint=constraint, seed=seed, on_step=on_step))
        return verify(self, prompts, outcomes, score.queries, scorer, k=k, constraint=constraint)

    @abstractmethod
    def run(self, problem: Problem) -> list[Outcome]:
        """The attack itself: one outcome a prompt, within distance ``problem.k`` and allowed."""

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
        """The results at several ``k``: what one call a ``k`` returns. An attack whose search goes edit by edit may give
        them for the price of the largest."""
        return {k: self(prompts, scorer, k=k, constraint=constraint, seed=seed, on_step=on_step) for k in ks}


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts as a list; TypeError or ValueError naming the first that cannot be attacked."""
    if isinstance(prompts, str):
        raise TypeError("prompts must be a list of strings, got one string: pass [prompt]")
    prompts = list(prompts)
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(f"prompt {i} is not a string but {type(prompt).__name__}")
        if len(prompt) > LONGEST_PROMPT:
            raise ValueError(f"prompt {i} has {len(prompt):,} characters; {LONGEST_PROMPT:,} at most")
        if not shows(prompt):
            raise ValueError(f"prompt {i} is empty, or nothing of it shows: remove it, there is nothing to attack")
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise ValueError(f"prompt {i} holds half a surrogate pair, which is no text: decode the file as UTF-8")
    return prompts


def check_k(k: int) -> None:
    """TypeError or ValueError unless ``k`` is a whole number of edits."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise TypeError(f"k must be a whole number of edits, got {k!r}")
    if k < 0:
        raise ValueError(f"k must not be negative, got {k}")


def bind_constraint(constraint: Constraint | None, prompts: Sequence[str]) -> Allowed:
    """``constraint`` against ``prompts``; None allows everything."""

    def allowed(i: int, current: str, candidates: Candidates) -> NDArray[np.bool_]:
        if constraint is None:
            return np.ones(len(candidates), dtype=bool)
        return constraint.allows(prompts[i], current, candidates)

    return allowed


def generators(prompts: Sequence[str], seed: int) -> list[np.random.Generator]:
    """One generator a prompt, from (seed, prompt) alone."""
    digests = (hashlib.sha256(f"{seed}\n{prompt}".encode()).digest() for prompt in prompts)
    return [np.random.default_rng(int.from_bytes(digest, "little")) for digest in digests]


def verify(
    attack: Attack,
    prompts: Sequence[str],
    outcomes: Sequence[Outcome],
    queries: Sequence[int],
    scorer: AnyScorer,
    *,
    k: int,
    constraint: Constraint | None,
) -> list[AttackResult]:
    """Measure ``outcomes`` of ``attack`` with a fresh bind; RuntimeError for one that breaks the distance or the constraint."""
    if len(outcomes) != len(prompts):
        raise RuntimeError(f"the attack returned {len(outcomes)} results for {len(prompts)} prompts")
    if not prompts:
        return []
    score, encoder = scorer.bind(prompts), scorer.encoder
    measured = score(
        [Candidates.from_texts([o]) if isinstance(o, str) else Candidates.from_tokens([o]) for o in outcomes]
    )
    cleans = score.clean()
    results = []
    for i, (prompt, outcome) in enumerate(zip(prompts, outcomes, strict=True)):
        if isinstance(outcome, str):
            text, far = outcome, attack.measure(prompt, outcome)
            given = encoder.preprocess([text])
            tokens, truncated = encoder.tokenize(given)[0], encoder.is_truncated(given)[0]
        else:
            text, tokens, truncated = (
                cast(Any, encoder).rows.text(outcome),
                outcome,
                False,
            )
            far = int(Levenshtein.distance(encoder.tokenize(encoder.preprocess([prompt]))[0], outcome))
        if far > (within := k * attack.distance_per_edit):
            raise RuntimeError(
                f"the attack moved prompt {i} by {far} edits where {within} are allowed: {prompt!r} -> {text!r}"
            )
        if constraint is not None and not constraint.holds(prompt, text):
            raise RuntimeError(
                f"the attack broke the constraint {constraint.name} on prompt {i}: {prompt!r} -> {text!r}"
            )
        unchanged = outcome == prompt  # then the difference is exactly none, whatever the batch did
        value = float(cleans[i] if unchanged else measured[i][0])
        success = bool(score.solved(i, value)) if score.solved(i, math.inf) else None
        results.append(
            AttackResult(
                prompt,
                text,
                list(tokens),
                value,
                float(cleans[i]),
                far,
                int(queries[i]),
                success,
                bool(truncated),
                scorer.objective_name,
                scorer.in_full and attack.exact(prompt, k),
            )
        )
    return results
