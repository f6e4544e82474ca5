"""What token states of any number say, as one vector, so that prompts of different lengths can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor


class SequenceFeature(Protocol):
    """A function of the token states of one prompt."""

    @property
    def name(self) -> str: ...

    def __call__(self, states: Float[Tensor, "t width"]) -> Float[Tensor, " d"]: ...


@dataclass(frozen=True)
class MeanState:
    """The mean of the states: [width]."""

    name: str = "mean state"

    def __call__(self, states: Float[Tensor, "t width"]) -> Float[Tensor, " d"]:
        return states.float().mean(0)


@dataclass(frozen=True)
class Readout:
    """What attention reads from the states: [queries * width].

    A misspelt prompt has other tokens in other places, so states are not compared place by place. A denoiser does not either:
    its queries read softmax(Q K') V. Here the queries are random (always the same), keys and values the states themselves,
    each brought to a root mean square of 1, as the norms of denoisers do; else the first token of a language model, whose state
    is hundreds of times as large, would be all that is read.
    """

    queries: int = 64

    @property
    def name(self) -> str:
        return f"readout of {self.queries} queries"

    def __call__(self, states: Float[Tensor, "t width"]) -> Float[Tensor, " d"]:
        states = states.float()
        states = states / states.square().mean(1, keepdim=True).clamp(min=1e-12).sqrt()
        queries = _queries(self.queries, states.shape[1]).to(states.device)
        return (torch.softmax(queries @ states.T / states.shape[1] ** 0.5, 1) @ states).flatten()


@cache
def _queries(n: int, width: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.randn(n, width, generator=torch.Generator().manual_seed(0))
