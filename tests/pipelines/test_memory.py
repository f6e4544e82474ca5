"""diffusers' savers of memory on each Leaf pipeline, bit by bit as on the stock twin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from tests.pipelines.conftest import Kind

PROMPTS = ["a red umbrella", "a blue cat on a very old and quiet bench"]


@pytest.mark.parametrize("switch", ["enable_attention_slicing", "enable_vae_slicing", "enable_vae_tiling"])
def test_savers_of_memory(kind: Kind, switch: str) -> None:
    images = []
    for maker in (kind.leaf, kind.stock):
        pipe = maker(**kind.parts())
        if not hasattr(pipe, switch):  # SD3 has the VAE's alone, on the VAE
            getattr(pipe.vae, switch.replace("vae_", ""))()
        else:
            getattr(pipe, switch)()
        images.append(kind.image(pipe, PROMPTS))
    assert np.array_equal(images[0], images[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading to the CPU needs a GPU to come from")
@pytest.mark.parametrize("switch", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading(kind: Kind, switch: str) -> None:
    images = []
    for maker in (kind.leaf, kind.stock):
        pipe = maker(**kind.parts())
        getattr(pipe, switch)()
        images.append(kind.image(pipe))
    assert np.array_equal(images[0], images[1])
