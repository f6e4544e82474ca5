"""Scores of candidates by what a pipeline's denoiser is given of them: for any pipeline, one candidate after the other."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from leaf_diffusion.attacks import Attack, AttackResult, ExactOrBeam
from leaf_diffusion.diffusion.families import family_of
from leaf_diffusion.diffusion.pipeline_encoder import PipelineEncoder, PromptEmbedding
from leaf_diffusion.encoders.features import Readout, SequenceFeature
from leaf_diffusion.scoring.plain import one_each
from leaf_diffusion.scoring.scorer import AnyScorer
from leaf_diffusion.text import Candidates, Constraint, constraint_from_name

FEATURE = Readout()
AT_ONCE = 64
"""Texts whose states are held at a time: those of a large T5 are 8 MB each."""


def attack(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    attack: Attack | None = None,
    k: int = 1,
    constraint: Constraint | str | None = "no-new-words",
    feature: SequenceFeature = FEATURE,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> list[AttackResult]:
    """Worst prompts within `k` edits for any diffusers pipeline: those that move what its own `encode_prompt` gives the
    denoiser furthest, all text encoders together (default attack: `ExactOrBeam()`).

    Each candidate is encoded as the pipeline does it, which is slow: about 191 of them a character for all single edits;
    `attack=Charmer(n_positions=5)` takes some 500. ValueError for pipelines without `encode_prompt`.
    """
    rule = constraint_from_name(constraint) if isinstance(constraint, str) else constraint
    scorer = PipelineScorer(PipelineEncoder(pipeline), feature)
    return list((attack or ExactOrBeam())(list(prompts), scorer, k=k, constraint=rule, seed=seed, on_step=on_step))


def fast_scorer(pipeline: Any, encoders: Sequence[str] | None = None) -> AnyScorer:
    """The fastest scorer that attacks a diffusers pipeline: its Leaf class's own, on the text encoders of these names or on all;
    else `PipelineScorer`, with a warning that says why.

    Both give the same scores, but for rounding, where a family's text encoders are T5s, language models or CLIPs of which the denoiser
    is given one vector (FLUX, PixArt, Sana, Lumina, Z-Image, Qwen-Image, FLUX.2 klein). They differ where it is given a CLIP's token
    states (Stable Diffusion, XL, 3): the Leaf class moves the CLIP's pooled embedding, as the paper does, which takes far fewer
    tokens; `PipelineScorer` moves the states themselves, those of SD3's three encoders as one sequence.

    ValueError for names of no text encoder, and for names where the pipeline's class is not known.
    """
    try:
        leaf = family_of(pipeline).leaf_class().from_pipe(pipeline)
        leaf.encoders  # noqa: B018 - whether each is known
    except (TypeError, ValueError) as error:
        if encoders is not None:
            raise ValueError(
                f"of this pipeline all text encoders are attacked together, none by its name: {error}"
            ) from error
        warnings.warn(f"each candidate is encoded by the pipeline itself, which is slow: {error}", stacklevel=2)
        return PipelineScorer(PipelineEncoder(pipeline))
    scorer: AnyScorer = leaf.scorer(encoders=encoders)
    return scorer


class PipelineScorer:
    """The drift of what the denoiser is given: squared L2 from the clean prompt's over its squared norm, the mean over all
    sequences of states (by `feature`) and vectors, so that no encoder drowns another."""

    in_full = True

    def __init__(self, encoder: PipelineEncoder, feature: SequenceFeature = FEATURE) -> None:
        self.encoder, self.feature = encoder, feature

    @property
    def name(self) -> str:
        return f"{self.objective_name} on {self.encoder.name}"

    @property
    def objective_name(self) -> str:
        return f"drift(l2, {self.feature.name})"

    def bind(self, prompts: Sequence[str]) -> PipelineScore:
        """The score of each prompt's candidates; the clean prompts are encoded here."""
        return PipelineScore(self.encoder, self.feature, prompts)


class PipelineScore:
    """`PipelineScorer` bound to its prompts; texts that were scored are remembered."""

    def __init__(self, encoder: PipelineEncoder, feature: SequenceFeature, prompts: Sequence[str]) -> None:
        self._encoder, self._feature = encoder, feature
        self._clean = [self._vectors(each) for each in encoder(prompts)]
        self._known: list[dict[str, float]] = [{prompt: 0.0} for prompt in prompts]
        self.queries = [0] * len(prompts)

    def __call__(self, candidates: Sequence[Candidates], *, best: int = 1) -> list[Tensor]:
        """Scores, float32 on the CPU, one tensor a prompt. ValueError for candidates that are tokens and no texts."""
        one_each("candidate lists", len(candidates), len(self.queries))
        asked = [each.texts() for each in candidates]
        self.queries = [count + len(texts) for count, texts in zip(self.queries, asked, strict=True)]
        new = [
            (i, text) for i, texts in enumerate(asked) for text in dict.fromkeys(texts) if text not in self._known[i]
        ]
        for first in range(0, len(new), AT_ONCE):
            some = new[first : first + AT_ONCE]
            for (i, text), embedding in zip(some, self._encoder([text for _, text in some]), strict=True):
                self._known[i][text] = self._drift(self._clean[i], self._vectors(embedding))
        return [torch.tensor([known[text] for text in texts]) for known, texts in zip(self._known, asked, strict=True)]

    def _vectors(self, embedding: PromptEmbedding) -> list[Tensor]:
        whole = (each.new_ones(1, len(each), dtype=torch.bool) for each in embedding.states)
        read = [self._feature(each[None], there)[0] for each, there in zip(embedding.states, whole, strict=True)]
        return [*read, *embedding.pooled]

    def _drift(self, clean: Sequence[Tensor], other: Sequence[Tensor]) -> float:
        drifts = [
            float((b - a).square().sum() / a.square().sum().clamp(min=1e-12))
            for a, b in zip(clean, other, strict=True)
            if bool(a.any()) or bool(b.any())  # an encoder that is left out gives zeros
        ]
        return sum(drifts) / max(1, len(drifts))

    def gradient(self, token_rows: Sequence[Sequence[int]]) -> list[Tensor]:
        raise ValueError("an attack on tokens needs one text encoder and its vocabulary, a pipeline may have several")

    def clean(self) -> list[float]:
        return [0.0] * len(self.queries)

    def solved(self, i: int, score: float) -> bool:
        """Never: a drift has no end."""
        return score > math.inf
