"""Held-out figures of the trained world, measured on the weights as they ship."""

import hashlib
import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from PIL import Image

from leaf_diffusion.attacks import Exhaustive
from leaf_diffusion.attacks.images import APGD, Misclassify
from leaf_diffusion.encoders.image_encoder import load_image_encoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.scoring import Margin, Scorer
from leaf_diffusion.text.constraints import NoNewWords
from leaf_diffusion.world.captions import is_held_out, world_prompts, zero_shot_prompts
from leaf_diffusion.world.class_images import class_images
from leaf_diffusion.world.clip import clip_features
from leaf_diffusion.world.judge import KINDS, SceneJudge
from leaf_diffusion.world.scenes import BACKGROUNDS, MINIMAL_PAIRS, Scene, Thing, pixels, render, sample_scene
from leaf_diffusion.world.sources import load_clip

STEPS, GUIDANCE = 15, 3.0
"""The world's sampling defaults, where more steps change little."""


def noise_seed(prompt_id: str, index: int) -> int:
    """The seed of an image: from the prompt's id and the seed's index alone.

    48 bits of each: two prompts of one noise are no harm, and published images keep theirs.
    """
    return int.from_bytes(hashlib.sha256(f"{prompt_id[:12]}/{index}".encode()).digest()[:6], "big")


def generate(
    pipeline: StableDiffusionPipeline,
    texts: list[str],
    seeds: list[int],
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> list[Image.Image]:
    """One image a text, one CPU generator an image."""
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for start in range(0, len(texts), 32):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + 32]]
        batch = texts[start : start + 32]
        images += pipeline(batch, generator=generators, num_inference_steps=steps, guidance_scale=guidance).images
    return images


def generation_figures(
    pipeline: StableDiffusionPipeline, *, n: int = 200, steps: int = STEPS, guidance: float = GUIDANCE
) -> dict[str, float]:
    """Scene accuracy of clean prompts of every kind (`KINDS`), and of the one-object prompts with held-out pairs."""
    judge, figures = SceneJudge.load(), {}
    for shares, name in KINDS:
        prompts = world_prompts(n, seed=900, **shares)
        images = generate(
            pipeline, [p.text for p in prompts], [noise_seed(p.id, 0) for p in prompts], steps=steps, guidance=guidance
        )
        right = judge.correct(images, [p.scene for p in prompts])
        figures[name] = float(np.mean(right))
        if name == "one_object":
            held = [r for r, p in zip(right, prompts, strict=True) if is_held_out(p.scene)]
            figures["one_object_held_out"] = float(np.mean(held))
    return figures


@torch.inference_mode()
def zero_shot_anchors(
    *, per_class: int = 4, seed: int = 78, embed: Callable[[list[Image.Image]], torch.Tensor] | None = None
) -> torch.Tensor:
    """Class features of the zero-shot text task: normalised mean image features, [classes, 128], by `embed`, the original's
    image tower unless given."""
    rng = random.Random(f"zero-shot anchors {seed}")
    embed_own = clip_features(load_clip()).images
    classes = zero_shot_prompts()
    scenes = [
        Scene(
            (Thing(noun, colour, 0.5 + rng.uniform(-0.04, 0.04), 0.5, rng.uniform(0.37, 0.43)),),
            rng.choice(list(BACKGROUNDS)),
        )
        for _, noun, colour in classes
        for _ in range(per_class)
    ]
    images = [Image.fromarray(render(scene)) for scene in scenes]
    parts = [images[i : i + 256] for i in range(0, len(images), 256)]
    features = F.normalize(torch.cat([embed(part) if embed else embed_own(pixels(part)) for part in parts]), dim=-1)
    return F.normalize(features.unflatten(0, (-1, per_class)).mean(1), dim=-1)


def text_figures(source: str, *, seed: int = 0) -> dict[str, float]:
    """A text tower in the zero-shot text task (a caption a class, image anchors): clean, exact robust accuracy at k=1, minimal pairs."""
    encoder, anchors = load_text_encoder(source), zero_shot_anchors()
    classes = zero_shot_prompts()
    texts, targets = [text for text, _, _ in classes], torch.arange(len(classes))
    with torch.inference_mode():
        features = F.normalize(encoder.features(encoder.tokenize(texts)), dim=-1)
    logits = features @ anchors.T
    index = {(noun, colour): i for i, (_, noun, colour) in enumerate(classes)}
    told = [
        float(logits[index[noun, c], index[noun, c]] > logits[index[noun, c], index[other, c]])
        for pair in MINIMAL_PAIRS
        for noun, other in (pair, pair[::-1])
        for c in {colour for _, _, colour in classes}
    ]
    attacked = Exhaustive()(
        texts, Scorer(encoder, Margin(anchors, targets.tolist())), k=1, constraint=NoNewWords(), seed=seed
    )
    return {
        "zero_shot_clean": (logits.argmax(1) == targets).float().mean().item(),
        "zero_shot_robust_k1": 1 - float(np.mean([bool(result.success) for result in attacked])),
        "minimal_pairs": float(np.mean(told)),
    }


def image_figures(source: str, eps: float, *, steps: int = 30, seed: int = 0) -> dict[str, float]:
    """An image tower in the zero-shot image task (an image a class, the original's captions): clean, and under APGD on the
    cross-entropy and on the DLR loss within `eps`/255."""
    encoder, text = load_image_encoder(source), load_text_encoder("world:original")
    images, labels = class_images()
    with torch.inference_mode():
        features = text.features(text.tokenize([prompt for prompt, _, _ in zero_shot_prompts()]))
    classes = F.normalize(features, dim=-1).T.clone()
    pixels, targets = encoder.prepare(images), torch.tensor(labels)

    def classify(x: torch.Tensor) -> torch.Tensor:
        return 100 * F.normalize(encoder.features(x), dim=-1) @ classes

    with torch.no_grad():
        held = clean = classify(pixels).argmax(1) == targets
    for loss in ("ce", "dlr"):
        found = APGD(eps=eps / 255, steps=steps)(pixels, Misclassify(classify, targets, loss), seed=seed)
        held = held & (found.score <= 0)
    return {"zero_shot_clean": clean.float().mean().item(), "zero_shot_apgd": held.float().mean().item()}


def real_images(n: int, seed: int = 0, *, two: float = 0.0) -> list[Image.Image]:
    """Drawn images of scenes that no training used: the real set for KID, CMMD and Frechet distance."""
    rng = random.Random(f"real pictures {seed}")
    return [Image.fromarray(render(sample_scene(rng, two=two, split=None, small=0.0))) for _ in range(n)]
