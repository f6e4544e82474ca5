"""Scenes of the embedded world: what is in a picture, and how it is drawn."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from leaf_diffusion.world.shapes import RGB, SHAPES, draw_shape

SIZE = 32
NOUNS = tuple(sorted(SHAPES))
COLOURS: dict[str, RGB] = {
    "black": (18, 18, 22),
    "blue": (40, 75, 230),
    "green": (25, 155, 55),
    "orange": (255, 130, 15),
    "purple": (150, 45, 190),
    "red": (222, 25, 35),
    "white": (250, 250, 250),
    "yellow": (252, 222, 40),
}
BACKGROUNDS: dict[str, RGB] = {
    "brown": (112, 76, 48),
    "gray": (130, 132, 136),
    "pink": (250, 184, 204),
    "teal": (60, 152, 152),
}
MINIMAL_PAIRS = (
    ("bat", "cat"), ("bat", "hat"), ("cat", "hat"), ("cap", "cat"), ("cap", "car"), ("cap", "cup"), ("car", "cat"),
    ("ball", "bell"), ("boat", "coat"), ("house", "mouse"), ("dish", "fish"),
)  # fmt: skip
"""Nouns one edit apart: an encoder that hears no difference here is deaf, not robust."""

Relation = Literal["left", "above", "beside"]
Split = Literal["train", "test"]


@dataclass(frozen=True)
class Thing:
    """An object; `colour` None means that the caption does not say. Position and half-width as fractions of the picture."""

    noun: str
    colour: str | None
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.4


@dataclass(frozen=True)
class Scene:
    """One thing, or two with a relation of the first to the second ("beside": either side)."""

    things: tuple[Thing, ...]
    background: str
    relation: Relation | None = None
    small: bool = False


def held_out(noun: str, colour: str) -> bool:
    """Colour x noun pairs (1 in 16) that no training picture or caption shows."""
    return (NOUNS.index(noun) * 3 + list(COLOURS).index(colour) * 5) % 16 == 0


def _pair(rng: random.Random, split: Split | None) -> tuple[str, str]:
    while True:
        noun, colour = rng.choice(NOUNS), rng.choice(list(COLOURS))
        if split is None or held_out(noun, colour) == (split == "test"):
            return noun, colour


def sample_scene(rng: random.Random, *, two: float = 0.4, split: Split | None = "train", small: float = 0.1) -> Scene:
    """Draw a scene at random: `two` is the share of two-object scenes, `small` that of small single things.

    `split` "train" keeps held-out pairs out, "test" shows only them, None ignores the split.
    """
    background = rng.choice(list(BACKGROUNDS))
    if rng.random() >= two:
        noun, colour = _pair(rng, split)
        tiny = rng.random() < small
        radius = rng.uniform(0.22, 0.26) if tiny else rng.uniform(0.37, 0.43)
        shift = 0.14 if tiny else 0.04
        x, y = (0.5 + rng.uniform(-shift, shift) for _ in range(2))
        return Scene((Thing(noun, colour, x, y, radius),), background, small=tiny)
    first, second = _pair(rng, split), _pair(rng, split)
    while second == first:
        second = _pair(rng, split)
    relation: Relation = rng.choice(("left", "above"))
    things = []
    for (noun, colour), along in zip((first, second), (0.26, 0.74), strict=True):
        along, across = along + rng.uniform(-0.015, 0.015), 0.5 + rng.uniform(-0.03, 0.03)
        x, y = (along, across) if relation == "left" else (across, along)
        things.append(Thing(noun, colour, x, y, rng.uniform(0.215, 0.24)))
    return Scene(tuple(things), background, relation)


def render(scene: Scene, *, size: int = SIZE, supersample: int = 4) -> np.ndarray:
    """Draw a scene, antialiased: uint8 [size, size, 3]. Every colour must be known."""
    side, behind = size * supersample, BACKGROUNDS[scene.background]
    image = Image.new("RGB", (side, side), behind)
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        if thing.colour is None:
            raise ValueError(f"a scene to draw needs every colour; the {thing.noun} has none")
        draw_shape(draw, thing.noun, thing.x * side, thing.y * side, thing.radius * side, COLOURS[thing.colour], behind)
    return np.asarray(image.reduce(supersample))


def pixels(pictures: Iterable[np.ndarray | Image.Image]) -> Tensor:
    """Pictures (uint8 [h, w, 3]) to float32 [n, 3, h, w] in -1..1."""
    stack = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
