"""Replay: attacked captions are learnt from again, so that an attack is paid once and used several times.

A text that fooled the tower some updates ago still mostly does, and learning from it is cheaper than finding a new
one. The memory is a replay buffer, as reinforcement learning has it: first in, first out, drawn from uniformly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

_CAPTIONS, _ROWS, _ANCHORS = "replay.captions", "replay.rows", "replay.anchors"


@dataclass(frozen=True)
class Pairs:
    """Captions (their indices), the token rows of their attacked texts, and the original's features of the clean ones."""

    captions: list[int]
    rows: list[list[int]]
    anchors: Float[Tensor, "n d"]

    def __add__(self, other: Pairs) -> Pairs:
        anchors = torch.cat([self.anchors, other.anchors])
        return Pairs(self.captions + other.captions, self.rows + other.rows, anchors)

    def __getitem__(self, places: Sequence[int]) -> Pairs:
        anchors = self.anchors[torch.tensor(list(places), dtype=torch.long, device=self.anchors.device)]
        return Pairs([self.captions[i] for i in places], [self.rows[i] for i in places], anchors)

    def __len__(self) -> int:
        return len(self.captions)


class Replay:
    """The `size` newest pairs of one process, `drawn` of which join every batch (or all, as long as it holds fewer)."""

    def __init__(self, drawn: int, size: int) -> None:
        self.drawn, self.size = drawn, size
        self.held: Pairs | None = None

    def mixed(self, fresh: Pairs, seed: Sequence[int]) -> Pairs:
        """`fresh` and, behind them, earlier pairs, which follow from `seed` and what is held; `fresh` are kept."""
        if not self.drawn:
            return fresh
        held = self.held
        if held is None:
            self.held = fresh[range(len(fresh))[-self.size :]]
            return fresh
        rng = np.random.default_rng(list(seed))
        places = rng.choice(len(held), min(self.drawn, len(held)), replace=False)
        both = held + fresh
        self.held = both[range(len(both))[-self.size :]]
        return fresh + held[places.tolist()]

    def to_store(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """What a checkpoint has to hold, of all processes, which call this together and hold equally many."""
        if self.held is None:
            return {}
        longest = torch.tensor(max(map(len, self.held.rows)), device=accelerator.device)
        length = int(accelerator.gather(longest).max())
        filled = [[*row, *[-1] * (length - len(row))] for row in self.held.rows]
        tensors = {
            _CAPTIONS: torch.tensor(self.held.captions, device=accelerator.device),
            _ROWS: torch.tensor(filled, dtype=torch.int32, device=accelerator.device),
            _ANCHORS: self.held.anchors,
        }
        return {name: accelerator.gather(value) for name, value in tensors.items()}

    def resume(self, stored: dict[str, Tensor], accelerator: Accelerator) -> None:
        """Go on from a checkpoint's tensors; those that are the replay's are taken out of `stored`."""
        mine = {name: stored.pop(name) for name in (_CAPTIONS, _ROWS, _ANCHORS) if name in stored}
        if mine:
            n = len(mine[_CAPTIONS]) // accelerator.num_processes
            part = slice(accelerator.process_index * n, (accelerator.process_index + 1) * n)
            rows = [[token for token in row if token >= 0] for row in mine[_ROWS][part].tolist()]
            self.held = Pairs(mine[_CAPTIONS][part].tolist(), rows, mine[_ANCHORS][part].to(accelerator.device))
