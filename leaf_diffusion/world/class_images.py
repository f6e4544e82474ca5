"""Images of the embedded world by number: to train image towers on, and one class each to classify."""

import random
from collections.abc import Sequence

from PIL import Image

from leaf_diffusion.world.captions import describe, zero_shot_prompts
from leaf_diffusion.world.scenes import BACKGROUNDS, Scene, Thing, render, sample_scene


class WorldImages:
    """`n` training scenes (no held-out colour x noun pair among them), drawn when they are asked for."""

    def __init__(self, n: int, seed: int = 0) -> None:
        self.names: Sequence[str] = [f"world-{seed}-{i}" for i in range(n)]

    def load(self, i: int) -> Image.Image:
        return Image.fromarray(render(sample_scene(random.Random(self.names[i]))))

    def caption(self, i: int) -> str:
        """A training caption of image `i`."""
        rng = random.Random(self.names[i])
        return describe(sample_scene(rng), rng)[0]


def class_images(per_class: int = 1, seed: int = 79) -> tuple[list[Image.Image], list[int]]:
    """Images of one thing and their classes, numbers of `zero_shot_prompts`; class by class, no training image among
    them."""
    rng = random.Random(f"class pictures {seed}")
    images, labels = [], []
    for label, (_, noun, colour) in enumerate(zero_shot_prompts()):
        for _ in range(per_class):
            x, y = (0.5 + rng.uniform(-0.04, 0.04) for _ in range(2))
            thing = Thing(noun, colour, x, y, rng.uniform(0.37, 0.43))
            images.append(Image.fromarray(render(Scene((thing,), rng.choice(list(BACKGROUNDS))))))
            labels.append(label)
    return images, labels
