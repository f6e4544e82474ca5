"""Products in int8 on a CPU, with the kernels that torch compiles quantised models to (oneDNN)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from leaf_diffusion.encoders.causal import Affine

STEPS = 127
"""Of a layer's input: two products of more than 7 with 8 bits overflow the 16 bits that a CPU without VNNI adds them in."""


def multiplies_int8() -> bool:
    """Whether this torch has the kernels (builds for x86-64 and ARM have)."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")


@dataclass(frozen=True)
class Int8:
    """A layer whose weights [out, in] are int8 numbers with a scale for each output."""

    packed: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, layer: Affine) -> Self:
        """The nearest such layer."""
        weight = layer.weight.float()
        scales = (weight.abs().amax(1) / 127).clamp(min=1e-12)
        small = (weight / scales[:, None]).round().to(torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(small, None)
        return cls(packed, scales, torch.zeros(len(weight), dtype=torch.int64), layer.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """The layer of float32 rows [n, in], which are rounded to `STEPS` steps between the least and the largest of them all."""
        low, high = (float(each) for each in torch.aminmax(x))
        low, high = min(low, 0.0), max(high, 0.0)
        step = (high - low) / STEPS or 1.0
        if not math.isfinite(step):
            return x.new_full((len(x), len(self.scales)), math.nan)
        zero = round(-low / step)
        rounded = (x * (1 / step)).add_(zero + 0.5).clamp_(0, STEPS).to(torch.uint8)  # towards zero: so rounded
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, step, zero, self.packed, self.scales, self.zeros, self.bias, 1.0, 0, torch.float32, "none", [], ""
        )
        return found
