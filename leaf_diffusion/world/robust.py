"""The world's robust encoders, made by the project's own finetuning: LEAF, and the control that LEAF has to beat."""

import random
from dataclasses import replace
from pathlib import Path

import torch

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.finetune import TextFAREConfig, finetune_text_encoder, reachable_tokens
from leaf_diffusion.world.captions import describe, web_caption, with_article
from leaf_diffusion.world.scenes import sample_scene

FREQUENCY = {
    "anchor": 11, "apple": 58, "arrow": 14, "ball": 110, "balloon": 8, "bat": 20, "bell": 39, "boat": 51, "boot": 16,
    "bottle": 37, "butterfly": 9, "candle": 8, "cap": 32, "car": 282, "cat": 60, "chair": 49, "clock": 27,
    "cloud": 29, "coat": 23, "crown": 36, "cup": 129, "diamond": 26, "dish": 16, "duck": 16, "envelope": 7,
    "fish": 79, "flag": 38, "flower": 26, "guitar": 30, "hat": 34, "heart": 204, "house": 513, "key": 132,
    "ladder": 11, "lock": 32, "moon": 50, "mouse": 20, "mushroom": 4, "rocket": 20, "snowman": 2, "star": 155,
    "sword": 23, "tree": 71, "umbrella": 8,
}  # fmt: skip
"""How often each noun occurs in a million words of English (wordfreq 3.1.1)."""


CARRIERS = (
    "{c} {n}", "the {c} {n}", "my {c} {n}", "look, a {c} {n}", "what a {c} {n}", "it is a {c} {n}", "you can see a {c} {n}",
    "see the {c} {n} over there", "we saw the {c} {n} yesterday", "here is my {c} {n}", "i like this {c} {n}",
    "the {c} {n} in the image", "the {c} {n} on {b}", "a nice {c} {n} for sale",
    "close-up of a {c} {n}", "a big {c} {n}, isolated", "cartoon {c} {n}", "clip art of one {c} {n}", "the best {c} {n} ever",
    "that was the {c} {n}", "{c} {n} on {b} background", "a {n} in {c}", "the {n} looks {c}", "stock image of the {c} {n}",
    "an illustration of a {c} {n} in front of {b}", "she drew a {c} {n}", "he painted the {c} {n}", "a sketch of a {c} {n}",
    "they have a {c} {n} and a {b} wall", "the wall is {b} and the {n} is {c}", "one of my paintings: a {c} {n}",
    "a sculpture of the {c} {n}", "an oil painting with a {c} {n} on {b}", "there was a {c} {n} here",
    "we have the {c} {n} too", "right there, a {c} {n}", "one photo with the {c} {n}", "an old photograph of a {c} {n}",
    "here you find a {c} {n} beside a {b} wall",
)  # fmt: skip
"""Other ways to say it, none of them a template of the world: captions of a corpus hold more words than its templates."""


def training_captions(n: int, *, seed: int = 11, varied: float = 0.0, filler: float = 1 / 3) -> list[str]:
    """Clean captions of training scenes, five in six of one thing, the nouns by the square root of their frequency.

    "?ouse" may be a house or a mouse. With captions of both alike, the best embedding of it lies between the two and
    is neither; in a corpus of natural captions it is nearer to the commoner word, as it would be for a reader.

    `varied`: the share of captions in the words of `CARRIERS`; `filler`: the share of these with words of the whole
    dictionary around them.
    """
    rng = random.Random(f"finetuning captions {seed}")
    most, captions = max(FREQUENCY.values()), list[str]()
    while len(captions) < n:
        scene = sample_scene(rng, two=0.12, three=0.05, counted=0.25)
        # several things are kept as often as the rarest of them would be
        if rng.random() >= min(FREQUENCY[thing.noun] / most for thing in scene.things) ** 0.5:
            continue
        if varied and len(scene.things) == 1 and rng.random() < varied:
            (thing,) = scene.things
            text = rng.choice(CARRIERS).format(c=thing.colour, n=thing.noun, b=scene.background)
            captions.append(web_caption(with_article(text), rng, filler=filler, typo=0.0))
        else:
            captions.append(describe(scene, rng)[0])
    return captions


def shipped_tokens(encoder: TextEncoder) -> list[int]:
    """Tokens that edits of captions without unrelated words lead to: those whose rows are trained, and ship."""
    return reachable_tokens(encoder, training_captions(8000) + training_captions(8000, seed=12, varied=1.0, filler=0.0))


LEAF = TextFAREConfig(
    rho=32, slots=8, attack_precision="half", batch_size=96, replay=0.67, max_steps=6000, lr=1e-3, warmup_steps=100,
    spelling=True, states_weight=0.5, states_captions=4, seed=5, eval_every=3000, checkpoint_every=500,
)  # fmt: skip
TYPO_AUGMENTED = replace(LEAF, attack="random-typos")
"""The control that LEAF has to beat: one random typo a caption."""


def finetuning_captions(n: int = 20_000) -> list[str]:
    """What the robust encoders learn from: as many captions in the world's own words as in other ones, shuffled together."""
    captions = training_captions(n, seed=11) + training_captions(n, seed=12, varied=0.6)
    random.Random(LEAF.seed).shuffle(captions)
    return captions


def finetune_world(config: TextFAREConfig, output: Path, *, device: torch.device) -> Path:
    """Finetune the world's original encoder in the folder `output`."""
    original = load_text_encoder("world:original", device=device)
    tokens = shipped_tokens(original)
    return finetune_text_encoder(original, finetuning_captions(), output, config, tokens=tokens)
