"""diffusers' savers of memory on each Leaf pipeline, bit by bit as on the stock twin."""

import numpy as np
import pytest
import torch

PROMPTS = ["a red umbrella", "a blue cat on a very old and quiet bench"]


@pytest.mark.parametrize("switch", ["enable_attention_slicing", "enable_vae_slicing", "enable_vae_tiling"])
def test_savers_of_memory(kind, switch):
    images = []
    for maker in (kind.leaf, kind.stock):
        pipe = maker(**kind.parts())
        if not hasattr(pipe, switch):  # SD3 has the VAE's alone, on the VAE
            getattr(pipe.vae, switch.replace("vae_", ""))()
        else:
            getattr(pipe, switch)()
        images.append(kind.image(pipe, PROMPTS))
    assert np.array_equal(*images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading to the CPU needs a GPU to come from")
@pytest.mark.parametrize("switch", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading(kind, switch):
    images = []
    for maker in (kind.leaf, kind.stock):
        pipe = maker(**kind.parts())
        getattr(pipe, switch)()
        images.append(kind.image(pipe))
    assert np.array_equal(*images)
