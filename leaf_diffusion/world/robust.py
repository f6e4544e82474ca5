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
    """Clean captions of training scenes, as often as the scenes come: mostly of one thing."""
    rng = random.Random(f"finetuning captions {seed}")
    return [describe(sample_scene(rng, two=0.15), rng)[0] for _ in range(n)]


def finetune_world(name: str, output: Path, *, steps: int, seed: int, lr: float, device: torch.device) -> Path:
    """Finetune the world's original encoder: "leaf" by the LEAF attack, "typo-augmented" by one random typo a caption."""
    attack: Any = {"leaf": "leaf", "typo-augmented": "random-typos"}[name]
    config = TextFAREConfig(
        attack=attack,
        rho=5,
        k=1,
        batch_size=128,
        max_steps=steps,
        lr=lr,
        warmup_steps=50,
        weight_decay=1e-4,
        seed=seed,
        checkpoint_every=100,
    )
    encoder = load_text_encoder("world:original", device=device)
    return finetune_text_encoder(encoder, training_captions(20_000), output, config)
