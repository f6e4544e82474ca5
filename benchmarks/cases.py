"""The rows of the benchmark's table, and how one of them is run and counted: for the CPU, the GPU and the host's share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from baselines import PublishedLeaf, WholeSentences, clock

from leaf_diffusion.attacks import Attack, Charmer, Exhaustive, LeafAttack
from leaf_diffusion.attacks.base import Problem
from leaf_diffusion.encoders import HFTextEncoder, Hidden
from leaf_diffusion.encoders.base import Feature
from leaf_diffusion.finetune.anchors import AnchorDrift, embed
from leaf_diffusion.scoring import Drift, Objective, Scorer, prefix_forest
from leaf_diffusion.text import Constraint, NoNewWords, PublishedNoNewWords


@dataclass(frozen=True)
class Case:
    """One row of the table: an attack on some sentences, with or without the constraint."""

    name: str
    attack: Attack
    sentences: int
    constraint: Constraint | None = None
    published: str = "published"
    feature: Feature = "projected"
    k: int = 1


CASES = (
    Case("Charmer n=20, k=1", Charmer(n_positions=20), 2),
    Case("Charmer, constrained", Charmer(n_positions=20), 2, NoNewWords()),
    Case("exhaustive, k=1", Exhaustive(), 1),
    Case("LEAF rho=50, batch 16", LeafAttack(rho=50), 16, None, "published-training"),
    Case("LEAF, constrained", LeafAttack(rho=50), 16, NoNewWords(), "published-training"),
    Case("LEAF, constrained, as published", PublishedLeaf(rho=50), 16, PublishedNoNewWords(), "published-training"),
    Case("Charmer n=4 on token states", Charmer(n_positions=4), 2, feature=Hidden(-1, "content")),
    Case("the same, padding included", Charmer(n_positions=4), 1, feature=Hidden(-1, "all")),
)


@dataclass
class Counted:
    """Tokens, sentences and query-key pairs that the forests of a run were made of."""

    nodes: int = 0
    rows: int = 0
    keys: int = 0
    build_forest: Callable[..., Any] = field(default=prefix_forest.build_forest)

    def __call__(self, rows: Any, *given: Any) -> Any:
        forest = self.build_forest(rows, *given)
        needed = forest.pairs[: forest.ends[-1] + 1]  # without what fills the last chunk
        self.nodes += len(needed)
        self.rows += len(rows)
        self.keys += int((forest.positions[needed] + 1).sum())
        return forest


@contextmanager
def counting() -> Any:
    """Count what the engine computes."""
    counted = Counted()
    prefix_forest.build_forest = counted
    try:
        yield counted
    finally:
        prefix_forest.build_forest = counted.build_forest


def run(case: Case, encoder: HFTextEncoder, sentences: Sequence[str], engine: str, precision: str = "fp32") -> float:
    """Seconds of one attack (`clock`): what `Attack.run` takes, without the verification of its results."""
    prompts = list(sentences[: case.sentences])
    constraint = case.constraint
    if constraint is not None and engine.startswith("published"):
        constraint = WholeSentences(constraint, refuses=isinstance(case.attack, PublishedLeaf))
    objective: Objective = Drift("l2", feature=case.feature)
    if isinstance(case.attack, LeafAttack):  # as in training, where the clean embeddings are known
        objective = AnchorDrift(embed(encoder, prompts))
    scorer = Scorer(encoder, objective, engine, precision)  # type: ignore[arg-type]
    started = clock(encoder.device)
    score = scorer.bind(prompts)
    case.attack.run(Problem.of(prompts, score, case.k, constraint=constraint))
    return clock(encoder.device) - started
