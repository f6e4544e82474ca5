"""The world's CLIPs: the one that is attacked (transformers) and the one that judges (open_clip), trained alike.

Source of the objective: Radford et al. 2021, the symmetric cross-entropy over a batch of pictures and captions.
"""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from leaf_diffusion.encoders.tokenizer import clip_tokenizer
from leaf_diffusion.world.captions import describe, web_caption, zero_shot_prompts
from leaf_diffusion.world.fit import fit
from leaf_diffusion.world.scenes import MINIMAL_PAIRS, SIZE, Scene, Thing, held_out, pixels, render, sample_scene

TEXT_WIDTH, PROJECTION, BATCH = 128, 128, 128
EOS = 49407
JUDGE_CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIZE, "patch_size": 4, "width": 64, "layers": 3, "head_width": 16, "mlp_ratio": 3.0},
    "text_cfg": {"width": 64, "layers": 3, "heads": 2, "context_length": 77, "vocab_size": 49408},
}


def new_clip() -> CLIPModel:
    """An untrained CLIP at the world's scale: text 128 wide x 4 layers, a small ViT, the real vocabulary."""
    text: dict[str, Any] = {
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    text |= {
        "projection_dim": PROJECTION,
        "bos_token_id": EOS - 1,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
        "hidden_act": "quick_gelu",
    }
    vision: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    vision |= {"image_size": SIZE, "patch_size": 4, "hidden_act": "quick_gelu"}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION))


def new_judge() -> open_clip.CLIP:
    """An untrained CLIP of another family (open_clip), with other widths: it judges, and is never attacked on its own behalf."""
    return open_clip.CLIP(**JUDGE_CONFIG)


def pad_rows(rows: list[list[int]], fill: int, length: int | None = None) -> Tensor:
    """Token rows to int64 [n, length or the longest row]."""
    length = length or max(map(len, rows))
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows])


def clip_features(clip: CLIPModel) -> tuple[Callable[[Tensor], Tensor], Callable[[list[str]], Tensor]]:
    """Functions pixels -> [n, 128] and captions -> [n, 128] of a transformers CLIP."""
    tokenizer = clip_tokenizer()

    def images(x: Tensor) -> Tensor:
        x = x.to(clip.device)
        return clip.visual_projection(clip.vision_model(x).pooler_output)

    def texts(captions: list[str]) -> Tensor:
        ids = pad_rows(tokenizer(captions, truncation=True)["input_ids"], EOS).to(clip.device)
        return clip.text_projection(clip.text_model(ids).pooler_output)

    return images, texts


def judge_features(judge: open_clip.CLIP) -> tuple[Callable[[Tensor], Tensor], Callable[[list[str]], Tensor]]:
    """The same two functions of an open_clip model."""
    tokenizer, device = open_clip.SimpleTokenizer(), judge.logit_scale.device

    def images(x: Tensor) -> Tensor:
        return judge.encode_image(x.to(device))

    def texts(captions: list[str]) -> Tensor:
        return judge.encode_text(tokenizer(captions).to(device))

    return images, texts


def train_contrastive(
    name: str, model: nn.Module, features: tuple[Callable, Callable], *, steps: int, seed: int, lr: float, folder: Path
) -> set[str]:
    """Train a CLIP on fresh scenes and web-like captions; returns every caption that was read."""
    images, texts = features
    read: set[str] = set()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(14.0))  # type: ignore[operator,union-attr]
    device = model.logit_scale.device  # type: ignore[union-attr]
    target = torch.arange(BATCH, device=device)

    def batch(rng: random.Random) -> tuple[list[Scene], list[str]]:
        scenes = [sample_scene(rng) for _ in range(BATCH)]
        captions = [web_caption(describe(scene, rng)[0], rng) for scene in scenes]
        return scenes, captions

    def loss(step: int, rng: random.Random) -> Tensor:
        scenes, captions = batch(rng)
        with torch.autocast(device.type, torch.bfloat16):
            picture, text = images(pixels(map(render, scenes))), texts(captions)
        scale = model.logit_scale.exp().clamp(max=100)  # type: ignore[operator,union-attr]
        logits = scale * F.normalize(picture.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
        # noun-only and repeated captions describe other pictures of the batch too: those are no negatives
        same = torch.tensor(np.equal.outer(np.array(captions), np.array(captions))) & ~torch.eye(
            BATCH, dtype=torch.bool
        )
        logits = logits.masked_fill(same.to(device), -1e4)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def report(step: int) -> str:
        return " ".join(f"{k} {v:.3f}" for k, v in clip_figures(features).items() if isinstance(v, float))

    fit(name, [model], loss, steps=steps, lr=lr, seed=seed, folder=folder, report=report)
    for step in range(steps):
        read.update(batch(random.Random(f"{name} {seed} {step}"))[1])
    return read


@torch.inference_mode()
def clip_figures(features: tuple[Callable, Callable], *, seed: int = 77) -> dict[str, float]:
    """Zero-shot accuracy over the 192 colour x noun classes (and over the held-out ones), retrieval, minimal pairs.

    Pictures are drawn from a seed that no training uses, two a class.
    """
    images, texts = features
    rng = random.Random(f"clip figures {seed}")
    classes = zero_shot_prompts()
    anchors = F.normalize(texts([text for text, _, _ in classes]), dim=-1)
    backgrounds = ("brown", "gray", "pink", "teal")
    scenes, labels = [], []
    for _ in range(2):
        for i, (_, noun, colour) in enumerate(classes):
            x, y = (0.5 + rng.uniform(-0.04, 0.04) for _ in range(2))
            scenes.append(Scene((Thing(noun, colour, x, y, rng.uniform(0.37, 0.43)),), rng.choice(backgrounds)))
            labels.append(i)
    pictures = F.normalize(images(pixels(map(render, scenes))), dim=-1)
    right = ((pictures @ anchors.T).argmax(1).cpu() == torch.tensor(labels)).float()
    held = torch.tensor([held_out(classes[i][1], classes[i][2]) for i in labels])
    index = {(noun, colour): i for i, (_, noun, colour) in enumerate(classes)}
    told = []
    for one, other in MINIMAL_PAIRS:
        for row, i in zip(pictures, labels, strict=True):
            noun, colour = classes[i][1:]
            if noun in (one, other):
                wrong = other if noun == one else one
                told.append(float(row @ anchors[i] > row @ anchors[index[wrong, colour]]))
    pairs = [sample_scene(rng, two=1.0) for _ in range(256)]
    captions = [describe(scene, rng, "test")[0] for scene in pairs]
    paired = F.normalize(images(pixels(map(render, pairs))), dim=-1) @ F.normalize(texts(captions), dim=-1).T
    return {
        "zero_shot": right.mean().item(),
        "zero_shot_held_out": right[held].mean().item(),
        "minimal_pairs": float(np.mean(told)),
        "pair_retrieval_at_1": (paired.argmax(1).cpu() == torch.arange(256)).float().mean().item(),
    }
