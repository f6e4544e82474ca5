"""The world's robust encoders, made by the project's own finetuning: LEAF, and the control that LEAF has to beat."""

import random
from pathlib import Path
from typing import Any

import torch

from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.finetune import TextFAREConfig, finetune_text_encoder
from leaf_diffusion.world.captions import describe
from leaf_diffusion.world.scenes import sample_scene


def training_captions(n: int, *, seed: int = 11) -> list[str]:
    """Distinct clean captions of training scenes."""
    rng = random.Random(f"finetuning captions {seed}")
    captions: dict[str, None] = {}
    while len(captions) < n:
        captions[describe(sample_scene(rng, two=0.3), rng)[0]] = None
    return list(captions)


def finetune_world(name: str, output: Path, *, steps: int, seed: int, lr: float, device: torch.device) -> Path:
    """Finetune the world's original encoder: "leaf" by the LEAF attack, "typo-augmented" by one random typo a caption."""
    attack: Any = {"leaf": "leaf", "typo-augmented": "random-typos"}[name]
    config = TextFAREConfig(
        attack=attack, rho=20, k=1, batch_size=64, max_steps=steps, lr=lr, warmup_steps=50, weight_decay=1e-4, seed=seed
    )
    encoder = load_text_encoder("world:original", device=device)
    return finetune_text_encoder(encoder, training_captions(20_000), output, config)
