"""What is looked at of a text encoder's output: pooled or projected, token states place by place, or what a sequence of
states says as one vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Hidden:
    """The token states a denoiser is conditioned on, flattened to one vector of `context_length * width` numbers.

    `layer=-1` is the last state after the final layer norm (what SD-1.5 sees); any other layer is the raw state of
    that depth as transformers counts them (0 = embeddings, -2 = penultimate, what SDXL sees).
    `positions="content"` sets the states behind end-of-text to zero; `"all"` keeps the real states of the padding.
    """

    layer: int = -1
    positions: Literal["content", "all"] = "content"


ALL = Hidden(-1, "all")


@dataclass(frozen=True)
class SequenceFeature(ABC):
    """One vector of a prompt's token states, however many they are and wherever they stand, so that prompts of different
    lengths can be compared.

    `hidden`: which states of a CLIP. An encoder of another kind knows itself which states a denoiser is given.
    """

    hidden: Hidden = field(default=ALL, kw_only=True)

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def __call__(self, states: Float[Tensor, "n t width"], there: Bool[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        """Float32; `there`: the places that hold a state, at least one in each row."""

    def __str__(self) -> str:
        return self.name if self.hidden == ALL else f"{self.name} of {self.hidden}"


@dataclass(frozen=True)
class MeanState(SequenceFeature):
    """The mean of the states: [n, width]."""

    @property
    def name(self) -> str:
        return "mean state"

    def __call__(self, states: Float[Tensor, "n t width"], there: Bool[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        kept = torch.where(there[..., None], states.float(), 0.0)
        return kept.sum(1) / there.sum(1, keepdim=True)


@dataclass(frozen=True)
class Readout(SequenceFeature):
    """What attention reads from the states: [n, queries * width].

    A misspelt prompt has other tokens in other places, so states are not compared place by place. A denoiser does not either:
    its queries read softmax(Q K') V. Here the queries are random (always the same), keys and values the states themselves,
    each brought to a root mean square of 1, as the norms of denoisers do; else the first token of a language model, whose state
    is hundreds of times as large, would be all that is read.
    """

    queries: int = 64

    @property
    def name(self) -> str:
        return f"readout of {self.queries} queries"

    def __call__(self, states: Float[Tensor, "n t width"], there: Bool[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        states = even(states, there)
        queries = _queries(self.queries, states.shape[2]).to(states.device)
        logits = (states @ queries.T / states.shape[2] ** 0.5).masked_fill(~there[..., None], -torch.inf)
        return (torch.softmax(logits, 1).transpose(1, 2) @ states).flatten(1)


@dataclass(frozen=True)
class EveryState(SequenceFeature):
    """The states as they stand, each brought to a root mean square of 1: [n, t * width]. Only for texts of equal tokens."""

    @property
    def name(self) -> str:
        return "states place by place"

    def __call__(self, states: Float[Tensor, "n t width"], there: Bool[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        return even(states, there).flatten(1)


def even(states: Float[Tensor, "n t width"], there: Bool[Tensor, "n t"]) -> Float[Tensor, "n t width"]:
    """The states that are there, each with a root mean square of 1, and zeros."""
    states = torch.where(there[..., None], states.float(), 0.0)
    return states * states.square().mean(2, keepdim=True).clamp(min=1e-12).rsqrt()


@cache
def _queries(n: int, width: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.randn(n, width, generator=torch.Generator().manual_seed(0))


Feature = Literal["pooled", "projected"] | Hidden | SequenceFeature


def hidden_of(feature: Feature) -> Hidden | None:
    """The token states of a CLIP that a feature is made of; None for pooled ones."""
    if isinstance(feature, SequenceFeature):
        return feature.hidden
    return feature if isinstance(feature, Hidden) else None
