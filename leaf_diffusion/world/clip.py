"""The world's CLIPs: the one that is attacked (transformers) and the one that judges (open_clip), trained alike.

Source of the objective: Radford et al. 2021, the symmetric cross-entropy over a batch of images and captions.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from leaf_diffusion.tokens.tokenizer import clip_tokenizer
from leaf_diffusion.world.captions import describe, zero_shot_prompts
from leaf_diffusion.world.corpus import EOS, Corpus, floats
from leaf_diffusion.world.fit import fit
from leaf_diffusion.world.scenes import (
    BACKGROUNDS,
    MINIMAL_PAIRS,
    SIZE,
    Scene,
    Thing,
    held_out,
    pixels,
    render,
    sample_scene,
    twin,
)

TEXT_WIDTH, PROJECTION = 128, 128
JUDGE_CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIZE, "patch_size": 8, "width": 64, "layers": 3, "head_width": 16, "mlp_ratio": 3.0},
    "text_cfg": {"width": 48, "layers": 3, "heads": 2, "context_length": 77, "vocab_size": 49408},
}


def new_clip() -> CLIPModel:
    """An untrained CLIP at the world's scale: text 128 wide x 4 layers, a small ViT, the real vocabulary."""
    text: dict[str, object] = {
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
    vision: dict[str, object] = {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    vision |= {"image_size": SIZE, "patch_size": 8, "hidden_act": "quick_gelu"}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION))


def new_judge() -> open_clip.CLIP:
    """An untrained CLIP of another family (open_clip), with other widths: it judges, and is never attacked on its own behalf."""
    return open_clip.CLIP(**JUDGE_CONFIG)


def pad_rows(rows: list[list[int]], fill: int, length: int | None = None) -> Tensor:
    """Token rows to int64 [n, length or the longest row]."""
    length = length or max(map(len, rows))
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows])


@dataclass(frozen=True)
class Features:
    """A CLIP as three functions: images in -1..1 to [n, d], token rows filled up with end-of-text to [n, d], captions to
    [n, d]."""

    images: Callable[[Tensor], Tensor]
    tokens: Callable[[Tensor], Tensor]
    texts: Callable[[list[str]], Tensor]


def clip_features(clip: CLIPModel) -> Features:
    """The functions of a transformers CLIP."""
    tokenizer = clip_tokenizer()

    def images(x: Tensor) -> Tensor:
        return clip.visual_projection(clip.vision_model(x.to(clip.device)).pooler_output)

    def tokens(rows: Tensor) -> Tensor:
        return clip.text_projection(clip.text_model(rows.to(clip.device).long()).pooler_output)

    def texts(captions: list[str]) -> Tensor:
        return tokens(pad_rows(tokenizer(captions, truncation=True)["input_ids"], EOS))

    return Features(images, tokens, texts)


def judge_features(judge: open_clip.CLIP) -> Features:
    """The same functions of an open_clip model, which takes rows of 77 tokens filled up with 0."""
    tokenizer, device = open_clip.SimpleTokenizer(), judge.logit_scale.device

    def images(x: Tensor) -> Tensor:
        return judge.encode_image(x.to(device))

    def tokens(rows: Tensor) -> Tensor:
        rows = rows.to(device).long()
        behind = (rows == EOS).cumsum(1) > 1
        return judge.encode_text(F.pad(rows.masked_fill(behind, 0), (0, 77 - rows.shape[1])))

    def texts(captions: list[str]) -> Tensor:
        return judge.encode_text(tokenizer(captions).to(device))

    return Features(images, tokens, texts)


def train_contrastive(
    name: str,
    model: nn.Module,
    features: Features,
    corpus: Corpus,
    *,
    steps: int,
    batch: int,
    seed: int,
    lr: float,
    folder: Path,
) -> None:
    """Train a CLIP on a corpus, each scene beside its twin in every batch."""
    with torch.no_grad():
        model.logit_scale.fill_(math.log(14.0))  # type: ignore[operator,union-attr]
    device: torch.device = model.logit_scale.device  # type: ignore[union-attr,assignment]
    images, rows, lengths = corpus.images.to(device), corpus.rows.to(device), corpus.lengths
    target, itself = torch.arange(batch, device=device), torch.eye(batch, dtype=torch.bool, device=device)
    marks = torch.randint(1 << 40, (rows.shape[1],), device=device)

    def loss(step: int, rng: random.Random) -> Tensor:
        shown, told = corpus.pairs(batch, rng)
        read = rows[told.to(device), : lengths[told].max()]
        with torch.autocast(device.type, torch.bfloat16):
            image, text = features.images(floats(images[shown.to(device)])), features.tokens(read)
        scale = model.logit_scale.exp().clamp(max=100)  # type: ignore[operator,union-attr]
        logits = scale * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
        # noun-only and repeated captions describe other images of the batch too: those are no negatives
        same = (read * marks[: read.shape[1]]).sum(1)
        logits = logits.masked_fill((same[:, None] == same) & ~itself, -1e4)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def report(step: int) -> str:
        return " ".join(f"{k} {v:.3f}" for k, v in clip_figures(features).items())

    fit(name, [model], loss, steps=steps, lr=lr, seed=seed, folder=folder, report=report, report_every=500)


@torch.inference_mode()
def clip_figures(features: Features, *, seed: int = 77) -> dict[str, float]:
    """Zero-shot accuracy over the colour x noun classes (and over the held-out ones), retrieval, minimal pairs, and scenes of
    two and three things told from their twins.

    Images are drawn from a seed that no training uses, two a class.
    """
    images, texts = features.images, features.texts
    rng = random.Random(f"clip figures {seed}")
    classes = zero_shot_prompts()
    anchors = F.normalize(texts([text for text, _, _ in classes]), dim=-1)
    scenes, labels = [], []
    for _ in range(2):
        for i, (_, noun, colour) in enumerate(classes):
            x, y = (0.5 + rng.uniform(-0.04, 0.04) for _ in range(2))
            scenes.append(Scene((Thing(noun, colour, x, y, rng.uniform(0.37, 0.43)),), rng.choice(list(BACKGROUNDS))))
            labels.append(i)
    embedded = F.normalize(images(pixels(map(render, scenes))), dim=-1)
    right = ((embedded @ anchors.T).argmax(1).cpu() == torch.tensor(labels)).float()
    held = torch.tensor([held_out(classes[i][1], classes[i][2]) for i in labels])
    index = {(noun, colour): i for i, (_, noun, colour) in enumerate(classes)}
    told = []
    for one, other in MINIMAL_PAIRS:
        for row, i in zip(embedded, labels, strict=True):
            noun, colour = classes[i][1:]
            if noun in (one, other):
                wrong = other if noun == one else one
                told.append(float(row @ anchors[i] > row @ anchors[index[wrong, colour]]))
    pairs = [sample_scene(rng, two=0.5, three=0.5, counted=0.2) for _ in range(256)]
    states = [rng.getrandbits(64) for _ in pairs]
    both = [
        [describe(s, random.Random(state), "test")[0] for s in (scene, twin(scene, rng))]
        for scene, state in zip(pairs, states, strict=True)
    ]
    shown = F.normalize(images(pixels(map(render, pairs))), dim=-1)
    own, other = (F.normalize(texts([captions[i] for captions in both]), dim=-1) for i in range(2))
    return {
        "zero_shot": right.mean().item(),
        "zero_shot_held_out": right[held].mean().item(),
        "minimal_pairs": float(np.mean(told)),
        "retrieval_at_1": ((shown @ own.T).argmax(1).cpu() == torch.arange(256)).float().mean().item(),
        "twins": ((shown * own).sum(1) > (shown * other).sum(1)).float().mean().item(),
    }
