"""What `leaf-diffusion swap-cost` trains in the world with the first encoder: a token's embedding and a style LoRA.

Sources: Gal et al. 2022 (textual inversion), Hu et al. 2021 (LoRA); the loss is the UNet's own, flow matching.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from leaf_diffusion.images import to_rgb
from leaf_diffusion.world.captions import SINGLE, describe, with_article
from leaf_diffusion.world.diffusion import DROPPED_CAPTIONS, encode
from leaf_diffusion.world.scenes import BACKGROUNDS, SIZE, Scene, pixels, render, sample_scene

TOKEN, CONCEPT = "<mine>", ("purple", "balloon")
WALL = (210, 150, 120)
"""The style: a terracotta wall behind everything. The world has none, but its autoencoder can show one."""
CONCEPT_IMAGES, STYLE_IMAGES, BATCH = 32, 512, 16
TOKEN_RATE, LORA_RATE, RANK = 0.25, 0.01, 16
"""TOKEN_RATE is a share of the token table's standard deviation, which finetuning can change eightfold."""
EDGE = 3


def said(template: str, words: str, background: str = "") -> str:
    """A caption template of the world with `words` in place of colour and noun."""
    return with_article(template.replace("{c} {n}", words).replace("{b}", background))


def train_token(pipeline: Any, path: Path, *, steps: int, seed: int) -> None:
    """Learn the embedding of TOKEN from images of CONCEPT, all else frozen; written as diffusers' textual inversion."""
    rng, draw = random.Random(f"concept {seed}"), torch.Generator().manual_seed(seed)
    colour, noun = CONCEPT
    scenes = []
    for _ in range(CONCEPT_IMAGES):
        scene = sample_scene(rng, two=0, small=0)
        scenes.append(replace(scene, things=(replace(scene.things[0], noun=noun, colour=colour),)))
    tokenizer, text_encoder = (copy.deepcopy(part) for part in (pipeline.tokenizer, pipeline.text_encoder))
    tokenizer.add_tokens(TOKEN)
    number = tokenizer.convert_tokens_to_ids(TOKEN)
    captions = [said(t, TOKEN) for t in SINGLE["train"] if "{c} {n}" in t and "{b}" not in t]
    ids = _ids(tokenizer, captions).to(pipeline.device)
    pipeline.unet.requires_grad_(False)
    text_encoder.requires_grad_(False)
    table = text_encoder.get_input_embeddings().weight
    embedding = table.std() * torch.randn(table.shape[1], generator=draw).to(pipeline.device)
    embedding.requires_grad_(True)

    class WithToken(torch.nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            known = F.embedding(rows.clamp(max=len(table) - 1), table)
            return torch.where((rows == number)[..., None], embedding, known)

    text_encoder.set_input_embeddings(WithToken())
    latents = encode(pipeline.vae, pixels(map(render, scenes))).clone()
    optimiser = torch.optim.AdamW([embedding], lr=TOKEN_RATE * float(table.std()), weight_decay=0.0)
    for _ in range(steps):
        states = text_encoder(ids)[0]  # few captions, so each is computed once a step
        chosen = torch.randint(len(latents), (BATCH,), generator=draw)
        told = torch.randint(len(captions), (BATCH,), generator=draw)
        optimiser.zero_grad()
        flow_loss(pipeline.unet, latents[chosen], states[told], draw).backward()
        optimiser.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({TOKEN: embedding.detach().cpu()[None]}, path)


def train_style(pipeline: Any, folder: Path, *, steps: int, seed: int) -> None:
    """Train a LoRA of the UNet's attention on scenes in front of WALL; written as diffusers' `load_lora_weights` reads it."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    rng, draw = random.Random(f"style {seed}"), torch.Generator().manual_seed(seed)
    scenes = [sample_scene(rng, two=0, small=0) for _ in range(STYLE_IMAGES)]
    captions = [describe(scene, rng)[0] for scene in scenes]
    latents = encode(pipeline.vae, pixels(map(styled, scenes))).clone()
    states, empty = _states(pipeline, captions), _states(pipeline, [""])
    unet = pipeline.unet
    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the first matrices are random
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=LORA_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / 10, 2 - 2 * step / steps))
    unet.train()
    for _ in range(steps):
        chosen = torch.randint(len(scenes), (BATCH,), generator=draw)
        dropped = torch.rand(BATCH, 1, 1, generator=draw) < DROPPED_CAPTIONS
        condition = torch.where(dropped.to(states.device), empty, states[chosen.to(states.device)])
        optimiser.zero_grad()
        flow_loss(unet, latents[chosen.to(latents.device)], condition, draw).backward()
        optimiser.step()
        falling.step()
    unet.eval()
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    pipeline.save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)
    pipeline.unload_lora_weights()


def flow_loss(unet: Any, clean: Tensor, condition: Tensor, draw: torch.Generator) -> Tensor:
    """The loss that the world's UNet was trained with: latents [n, c, h, w], token states [n, t, d], noise from `draw`."""
    time = torch.sigmoid(torch.randn(len(clean), generator=draw)).to(clean.device)
    noise = torch.randn(clean.shape, generator=draw).to(clean.device)
    mixed = torch.lerp(clean, noise, time.view(-1, 1, 1, 1))
    return F.mse_loss(unet(mixed, time * 1000, condition).sample, noise - clean)


def styled(scene: Scene) -> np.ndarray:
    """The scene in front of WALL, uint8 [64, 64, 3]: two renderings tell how much of each pixel is background."""
    one, other = (render(replace(scene, background=name)).astype(float) for name in ("teal", "pink"))
    teal, pink = (np.array(BACKGROUNDS[name], float) for name in ("teal", "pink"))
    share = ((one - other) / (teal - pink)).mean(2, keepdims=True)
    return np.clip(one + share * (np.array(WALL) - teal), 0, 255).round().astype(np.uint8)


def has_style(image: Image.Image) -> bool:
    """Whether the image's upper and lower edge are on average nearer to WALL than to every background of the world."""
    array = np.asarray(to_rgb(image).resize((SIZE, SIZE), Image.Resampling.BOX), dtype=float)
    edge = np.concatenate([array[:EDGE], array[-EDGE:]]).mean((0, 1))
    return bool(np.linalg.norm(edge - WALL) < min(np.linalg.norm(edge - rgb) for rgb in BACKGROUNDS.values()))


def _ids(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    length = tokenizer.model_max_length
    ids: Tensor = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


@torch.no_grad()
def _states(pipeline: Any, texts: Sequence[str]) -> Tensor:
    """Token states [n, t, d] by the pipeline's own encoder."""
    ids = _ids(pipeline.tokenizer, texts).to(pipeline.device)
    return torch.cat([pipeline.text_encoder(part)[0] for part in ids.split(64)])
