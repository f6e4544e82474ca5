"""One thread a worker (the workers already share the cores), and never a network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import leaf_diffusion  # noqa: F401, I001 - mends torchvision before a test imports torch's friends
import torch

torch.set_num_threads(1)
