"""Scenes of the embedded world: what is in an image, and how it is drawn."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from leaf_diffusion.world.shapes import RGB, draw_shape
from leaf_diffusion.world.silhouettes import SHAPES

SIZE = 64
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
    ("ball", "bell"), ("boat", "boot"), ("boat", "coat"), ("clock", "lock"), ("house", "mouse"), ("dish", "fish"),
)  # fmt: skip
"""Nouns one edit apart: an encoder that hears no difference here is deaf, not robust."""

Relation = Literal["left", "above", "beside"]
Split = Literal["train", "test"]
MOST_THINGS = 3
PLACES = {1: (0.5,), 2: (0.26, 0.74), 3: (0.175, 0.5, 0.825)}
"""Where the things of a row or a column stand, by their number."""
RADII = {1: (0.37, 0.43), 2: (0.215, 0.24), 3: (0.145, 0.16)}


@dataclass(frozen=True)
class Thing:
    """An object; `colour` None means that the caption does not say. Position and half-width as fractions of the image."""

    noun: str
    colour: str | None
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.4


@dataclass(frozen=True)
class Scene:
    """One to three things and how each stands to the next; "beside": in any order, in a row or a column.

    Things of one noun and colour are a count ("three red cats").
    """

    things: tuple[Thing, ...]
    background: str
    relation: Relation | None = None
    small: bool = False

    @property
    def counted(self) -> bool:
        """Whether the scene is several things of a kind."""
        return len(self.things) > 1 and len({(thing.noun, thing.colour) for thing in self.things}) == 1


def held_out(noun: str, colour: str) -> bool:
    """Colour x noun pairs (1 in 16) that no training image or caption shows."""
    return (NOUNS.index(noun) * 3 + list(COLOURS).index(colour) * 5) % 16 == 0


def _pair(rng: random.Random, split: Split | None) -> tuple[str, str]:
    while True:
        noun, colour = rng.choice(NOUNS), rng.choice(list(COLOURS))
        if split is None or held_out(noun, colour) == (split == "test"):
            return noun, colour


def sample_scene(
    rng: random.Random,
    *,
    two: float = 0.4,
    three: float = 0.0,
    counted: float = 0.0,
    split: Split | None = "train",
    small: float = 0.1,
) -> Scene:
    """Draw a scene at random: `two` and `three` are the shares of scenes of so many things, `counted` the share of counts
    among these, `small` that of small things among the single ones.

    `split` "train" keeps held-out pairs out, "test" shows only them, None ignores the split.
    """
    background = rng.choice(list(BACKGROUNDS))
    drawn = rng.random()
    n = 3 if drawn < three else 2 if drawn < three + two else 1
    if n == 1:
        noun, colour = _pair(rng, split)
        tiny = rng.random() < small
        radius = rng.uniform(0.22, 0.26) if tiny else rng.uniform(*RADII[1])
        shift = 0.14 if tiny else 0.04
        x, y = (0.5 + rng.uniform(-shift, shift) for _ in range(2))
        return Scene((Thing(noun, colour, x, y, radius),), background, small=tiny)
    kinds = [_pair(rng, split)]
    if rng.random() < counted:
        kinds *= n
    while len(kinds) < n:
        if (kind := _pair(rng, split)) not in kinds:
            kinds.append(kind)
    return placed(kinds, rng.choice(("left", "above")), background, rng)


def placed(kinds: Sequence[tuple[str, str]], relation: Relation, background: str, rng: random.Random) -> Scene:
    """Things of these nouns and colours in a row ("left") or a column ("above"), in this order."""
    things = []
    for (noun, colour), along in zip(kinds, PLACES[len(kinds)], strict=True):
        along, across = along + rng.uniform(-0.015, 0.015), 0.5 + rng.uniform(-0.03, 0.03)
        x, y = (along, across) if relation == "left" else (across, along)
        things.append(Thing(noun, colour, x, y, rng.uniform(*RADII[len(kinds)])))
    return Scene(tuple(things), background, relation)


def twin(scene: Scene, rng: random.Random) -> Scene:
    """A training scene that differs in one thing alone: colours or places changed between two things, or one colour, noun or
    number. What an encoder has to hear to tell the two apart is binding and order, which random batches hardly ever ask for.
    """
    kinds = [(thing.noun, str(thing.colour)) for thing in scene.things]
    n = len(kinds)
    for _ in range(100):
        other = list(kinds)
        i = rng.randrange(n)
        change = rng.choice(("colours", "places", "colour", "noun") if n > 1 else ("colour", "noun"))
        if scene.counted and rng.random() < 0.5:
            other = kinds[:1] * (5 - n)
        elif change == "colour":
            other[i] = (kinds[i][0], rng.choice(list(COLOURS)))
        elif change == "noun":
            other[i] = (rng.choice(NOUNS), kinds[i][1])
        else:
            j = rng.choice([j for j in range(n) if j != i])
            (a, p), (b, q) = kinds[i], kinds[j]
            other[i], other[j] = ((a, q), (b, p)) if change == "colours" else ((b, q), (a, p))
        repeated = len(set(other)) < len(other)
        if other == kinds or any(held_out(*kind) for kind in other) or (repeated and len(set(other)) != 1):
            continue
        if scene.relation is None:
            (thing,) = scene.things
            return replace(scene, things=(replace(thing, noun=other[0][0], colour=other[0][1]),))
        return placed(other, scene.relation, scene.background, rng)
    return scene


def render(scene: Scene, *, size: int = SIZE, supersample: int = 4) -> np.ndarray:
    """Draw a scene, antialiased: uint8 [size, size, 3]. Every colour must be known."""
    side, behind = size * supersample, BACKGROUNDS[scene.background]
    image = Image.new("RGB", (side, side), behind)
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        if thing.colour is None:
            raise ValueError(f"a scene to draw needs every colour; the {thing.noun} has none")
        draw_shape(
            draw, SHAPES[thing.noun], thing.x * side, thing.y * side, thing.radius * side, COLOURS[thing.colour], behind
        )
    return np.asarray(image.reduce(supersample))


def pixels(images: Iterable[np.ndarray | Image.Image]) -> Tensor:
    """Images (uint8 [h, w, 3]) to float32 [n, 3, h, w] in -1..1."""
    stack = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
