"""A token-level attack: gradient-guided substitution of whole tokens within a token budget.

Source: Ebrahimi et al. 2018 (HotFlip: the gradient ranks replacements) and Zou et al. 2023 (GCG: the best of them are
scored exactly, and may be scored in batches). The paper names token-level attacks among its limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar

import numpy as np
import torch

from leaf_diffusion.attacks.base import Allowed, Attack, Outcome, Problem
from leaf_diffusion.attacks.search import FLOOR, TIE, argbest
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.scoring.plain import PlainScore
from leaf_diffusion.scoring.scorer import BoundScore
from leaf_diffusion.text import Candidates


@dataclass(frozen=True, kw_only=True)
class TokenSubstitution(Attack):
    """``k`` rounds; in each the gradient ranks every (position, token), the ``top_n`` best are scored exactly, and the
    best of these is put in place if it scores higher.

    Threat model: ``k`` tokens substituted, whatever they spell; ``distance`` counts tokens. Begin and end of text stay.
    ``round_trip``: only rows that are the tokens of a text somebody could type (decoded and tokenized they come back,
    behind the encoder's defence). A constraint judges the decoded text. ``starts``: a drift has no slope at the clean
    prompt, its minimum; there the gradients at this many random substitutions rank, in turn.
    """

    name: ClassVar[str] = "tokens"
    unit: ClassVar[str] = "token"
    top_n: int = 256
    starts: int = 8
    round_trip: bool = True

    def __post_init__(self) -> None:
        if self.top_n < 1 or self.starts < 1:
            raise ValueError(f"top_n and starts must be at least 1, got {self.top_n} and {self.starts}")

    def run(self, problem: Problem) -> list[Outcome]:
        encoder = _encoder(problem.score)
        rows = [list(row) for row in encoder.tokenize(encoder.preprocess(list(problem.prompts)))]
        texts, best = list(problem.prompts), problem.score.clean() if problem.prompts else []
        finished = [problem.score.solved(i, value) for i, value in enumerate(best)]
        changed: list[set[int]] = [set() for _ in problem.prompts]
        for done in range(1, problem.k + 1):
            candidates = [Candidates.none()] * len(problem.prompts)
            active = [i for i in range(len(problem.prompts)) if not finished[i] and len(rows[i]) > 2]
            flat = [i for i in active if abs(best[i]) <= FLOOR]
            slopes = self._slopes(problem.score, rows, active, flat, problem.rngs)
            for i in active:
                candidates[i] = self._replacements(
                    encoder, i, rows[i], texts[i], slopes[i], changed[i], problem.allowed
                )
            for i, scores in enumerate(problem.score(candidates)):
                if not len(scores):
                    continue
                chosen = argbest(scores)
                value = float(scores[chosen])
                if value > best[i] + max(TIE * abs(best[i]), FLOOR):
                    new = (candidates[i].token_rows or [])[chosen]
                    changed[i] |= {at for at, (old, token) in enumerate(zip(rows[i], new, strict=True)) if old != token}
                    rows[i], best[i] = new, value
                    texts[i] = _decoded(encoder, new)
                    finished[i] = problem.score.solved(i, value)
            problem.tell(done * len(problem.prompts), problem.k * len(problem.prompts))
        return [rows[i] if changed[i] else problem.prompts[i] for i in range(len(problem.prompts))]

    def _slopes(
        self,
        score: BoundScore,
        rows: list[list[int]],
        active: list[int],
        flat: list[int],
        rngs: Sequence[np.random.Generator],
    ) -> dict[int, list[torch.Tensor]]:
        """Gradients [length, vocabulary] to rank by: the one at the row, for `flat` prompts those at random starts."""
        if not active:
            return {}
        here = score.gradient(rows)
        slopes = {i: [here[i]] for i in active if i not in flat}
        for _ in range(self.starts if flat else 0):
            started = [list(row) for row in rows]
            for i in flat:
                at, token = rngs[i].integers(1, len(rows[i]) - 1), rngs[i].integers(here[i].shape[1])
                started[i][at] = int(token) if int(token) not in (rows[i][0], rows[i][-1]) else 0
            for i, slope in enumerate(score.gradient(started)):
                if i in flat:
                    slopes.setdefault(i, []).append(slope)
        return slopes

    def _replacements(
        self,
        encoder: TextEncoder,
        i: int,
        row: list[int],
        text: str,
        slopes: list[torch.Tensor],
        changed: set[int],
        allowed: Allowed,
    ) -> Candidates:
        """The substitutions of one token that the gradients like best, at most ``top_n``; a place is changed once."""
        places = [at for at in range(1, len(row) - 1) if at not in changed]
        if not places:
            return Candidates.none()
        per_slope = -(-self.top_n // len(slopes)) * (4 if self.round_trip else 1) * 2
        orders = [_ranked(slope, row, places, per_slope) for slope in slopes]
        found: dict[tuple[int, ...], None] = {}
        for at, token in (pair for turn in zip_longest(*orders) for pair in turn if pair is not None):
            new = (*row[:at], token, *row[at + 1 :])
            if new in found or (self.round_trip and not _comes_back(encoder, list(new))):
                continue
            found[new] = None
            if len(found) == self.top_n:
                break
        made = Candidates.from_tokens(found)
        texts = Candidates.from_texts([_decoded(encoder, new) for new in found])
        return made[allowed(i, text, texts)] if found else Candidates.none()


def _ranked(slope: torch.Tensor, row: list[int], places: list[int], n: int) -> list[tuple[int, int]]:
    """The n substitutions (position, token) of the largest first-order gain, best first."""
    gain = slope[places] - slope[places, [row[at] for at in places]][:, None]
    gain[:, [row[0], row[-1]]] = -torch.inf
    gain[range(len(places)), [row[at] for at in places]] = -torch.inf
    best = gain.flatten().topk(min(gain.numel() - 3 * len(places), n)).indices.tolist()
    return [(places[flat // gain.shape[1]], flat % gain.shape[1]) for flat in best]


def _encoder(score: BoundScore) -> TextEncoder:
    if not isinstance(score, PlainScore):
        raise ValueError(
            "a token-level attack needs the gradient of one encoder: give it a Scorer, not a mean of several"
        )
    return score.encoder


def _decoded(encoder: TextEncoder, row: Sequence[int]) -> str:
    return encoder.rows.text(row)


def _comes_back(encoder: TextEncoder, row: list[int]) -> bool:
    return encoder.tokenize(encoder.preprocess([_decoded(encoder, row)]))[0] == row
