"""The floor of clean accuracy: below it training stops, and ends with the weights of the last measurement that held it."""

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from leaf_diffusion.finetune.checkpoint import Kept, Stop


class CleanFloor:
    """Keeps the trainable weights of the last measurement at or above `floor`, at first those that `tower` starts with.

    `floor`: the least clean accuracy, a share of 1; None keeps nothing and never stops. Only the main process measures
    and keeps; `agree` tells the others. `stopped`: whether a measurement was below the floor; `stop`: which, in the
    process that measured.
    """

    def __init__(self, floor: float | None, tower: nn.Module) -> None:
        self.floor, self.tower = floor, tower
        self.stopped, self.kept_step = False, 0
        self.stop: Stop | None = None
        self.kept: dict[str, Tensor] = {} if floor is None else self._weights()

    def measured(self, step: int, accuracy_clean: float) -> None:
        """Keep the weights after `step` updates or, below the floor, stop."""
        if self.floor is None:
            return
        if accuracy_clean >= self.floor:
            self.kept_step, self.kept = step, self._weights()
            return
        self.stopped = True
        self.stop = Stop(step=step, accuracy_clean=accuracy_clean, clean_floor=self.floor, kept_step=self.kept_step)

    def agree(self, accelerator: Accelerator) -> None:
        """Tell every process whether the main one has stopped: all of them call it after a measurement."""
        if self.floor is not None:
            self.stopped = bool(broadcast(torch.tensor(int(self.stopped), device=accelerator.device)))

    def restore(self) -> None:
        """Put the kept weights back into the tower, if training has stopped."""
        if self.stopped:
            with torch.no_grad():
                for name, parameter in self._trainable():
                    parameter.copy_(self.kept[name])

    def to_store(self) -> tuple[Kept | None, dict[str, Tensor]]:
        """(numbers, weights) that a checkpoint has to hold: none without a floor, no weights while they are the start's."""
        if self.floor is None:
            return None, {}
        return Kept(kept_step=self.kept_step, stop=self.stop), self.kept if self.kept_step else {}

    def resume(self, there: Kept | None, kept: dict[str, Tensor]) -> None:
        """Go on from a checkpoint's numbers and kept weights; without these the start's stay."""
        if there is not None:
            self.kept_step, self.stop, self.kept = there.kept_step, there.stop, kept or self.kept
            self.stopped = self.stop is not None

    def _trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, each) for name, each in self.tower.named_parameters() if each.requires_grad]

    def _weights(self) -> dict[str, Tensor]:
        return {name: each.detach().to("cpu", copy=True) for name, each in self._trainable()}

    def __str__(self) -> str:
        """The stop in a sentence, "" where there was none."""
        if self.stop is None:
            return ""
        kept = "no measurement held it, so the weights are those that training started with"
        if self.stop.kept_step:
            kept = f"the weights are those of step {self.stop.kept_step}, the last measurement that held it"
        below = f"accuracy_clean {self.stop.accuracy_clean:.4g} is below the floor of {self.stop.clean_floor:g}"
        return f"Training stopped at step {self.stop.step}: {below}; {kept}."
