"""The score of several towers at once (SDXL, SD3, FLUX), no tower drowned by another."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.edits import Candidates
from leaf_diffusion.tokens.token_rows import Row


class MeanScorer:
    """Weighted mean over towers, each score in units of its own tower (`Goal.scale`: the squared clean norm for L2).

    A query is one candidate, however many towers read it. `encoder` is the first tower.
    """

    def __init__(self, scorers: Sequence[tuple[Scorer, float]]) -> None:
        if not scorers or any(weight <= 0 for _, weight in scorers):
            raise ValueError("MeanScorer needs at least one (scorer, weight) pair, all weights above 0")
        self.scorers = list(scorers)

    @property
    def encoder(self) -> TextEncoder:
        return self.scorers[0][0].encoder

    @property
    def name(self) -> str:
        return f"mean({', '.join(f'{scorer.name}*{weight:g}' for scorer, weight in self.scorers)})"

    @property
    def objective_name(self) -> str:
        return f"mean({', '.join(scorer.objective_name for scorer, _ in self.scorers)})"

    @property
    def in_full(self) -> bool:
        return all(scorer.in_full for scorer, _ in self.scorers)

    def bind(self, prompts: Sequence[str]) -> MeanScore:
        return MeanScore(self.scorers, list(prompts))


class MeanScore:
    """`MeanScorer` bound to its prompts."""

    def __init__(self, scorers: list[tuple[Scorer, float]], prompts: list[str]) -> None:
        total = sum(weight for _, weight in scorers)
        self._towers = [(scorer.bind(prompts), weight / total) for scorer, weight in scorers]
        # factors[tower][prompt]
        self._factors = [[weight / goal.scale for goal in tower.goals] for tower, weight in self._towers]
        self._tokenizations = [scorer.encoder.tokenization for scorer, _ in scorers]
        self._sizes = [(scorer.encoder.name, scorer.encoder.token_embedding().shape[0]) for scorer, _ in scorers]
        self.queries = [0] * len(prompts)

    def __call__(self, candidates: Sequence[Candidates], *, best: int = 1) -> list[Float[Tensor, " _len"]]:
        """Scores, float32 on the CPU, one tensor a prompt. ValueError for token rows where the towers have several vocabularies."""
        if any(part.token_rows is not None for each in candidates for part in each.parts):
            self._require_one_vocabulary()
        rows: dict[tuple[object, ...], Sequence[Sequence[Row]]] = {}
        scored = []
        for (tower, _), tokenization in zip(self._towers, self._tokenizations, strict=True):
            if tokenization not in rows:
                rows[tokenization] = tower.rows(candidates)
            scored.append(tower.score_rows(rows[tokenization], best=best))
        scores = self._mean(scored)
        self.queries = [count + len(each) for count, each in zip(self.queries, candidates, strict=True)]
        return scores

    def gradient(self, token_rows: Sequence[Sequence[int]]) -> list[Float[Tensor, "_len vocab"]]:
        """The mean's gradient; ValueError where the towers do not share one vocabulary."""
        self._require_one_vocabulary()
        gradients = [tower.gradient(token_rows) for tower, _ in self._towers]
        return self._mean(gradients)

    def clean(self) -> list[float]:
        """Scores of the untouched prompts; no queries are counted."""
        towers = [tower.clean() for tower, _ in self._towers]
        return [
            sum(factor[i] * scores[i] for factor, scores in zip(self._factors, towers, strict=True))
            for i in range(len(self.queries))
        ]

    def solved(self, i: int, score: float) -> bool:
        """Solved where the mean score would solve every tower's goal (a mean margin above 0)."""
        return all(tower.solved(i, score) for tower, _ in self._towers)

    def _require_one_vocabulary(self) -> None:
        if len({size for _, size in self._sizes}) > 1:
            sizes = ", ".join(f"{name}: {size}" for name, size in self._sizes)
            raise ValueError(f"an attack on the tokens of several towers needs one vocabulary, got {sizes}")

    def _mean(self, towers: list[list[Tensor]]) -> list[Tensor]:
        return [
            sum(
                (
                    factor[i] * each[i].to(towers[0][i].device)
                    for factor, each in zip(self._factors, towers, strict=True)
                ),
                0.0 * towers[0][i],
            )
            for i in range(len(self.queries))
        ]
