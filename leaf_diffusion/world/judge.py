"""The scene judge: is each named thing there, in its colour, in its place? Never the attacked model.

The idea of GenEval (Ghosh et al. 2023), but with a classifier that knows the whole world.
"""

import random
from collections.abc import Sequence
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from leaf_diffusion.images import to_rgb
from leaf_diffusion.weights.files import load_weights
from leaf_diffusion.world.corpus import Corpus, floats
from leaf_diffusion.world.fit import fit
from leaf_diffusion.world.paths import weights
from leaf_diffusion.world.scenes import (
    BACKGROUNDS,
    COLOURS,
    MOST_THINGS,
    NOUNS,
    SIZE,
    Relation,
    Scene,
    Thing,
    pixels,
    render,
    sample_scene,
)

LAYOUTS: tuple[tuple[int, Relation | None], ...] = (
    (1, None), (2, "left"), (2, "above"), (3, "left"), (3, "above"),
)  # fmt: skip
"""Number of things and how each stands to the next."""
COLOUR_NAMES, BACKGROUND_NAMES = tuple(COLOURS), tuple(BACKGROUNDS)
HEADS = (len(LAYOUTS), len(BACKGROUNDS), *(len(NOUNS), len(COLOURS)) * MOST_THINGS)


class SceneClassifier(nn.Module):
    """Pixels [n, 3, 64, 64] in -1..1 to groups of logits: layout, background, noun and colour of each of three things.

    Things are numbered from the left or from the top.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 96, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in channels:
            for stride in (1, 2):
                layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
        side = SIZE // 2 ** len(channels)
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side * side, 256), nn.ReLU())
        self.head = nn.Linear(256, sum(HEADS))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.head(self.trunk(x)).split(HEADS, dim=1)


def labels(scenes: Sequence[Scene]) -> Tensor:
    """int64 [n, 8], -1 where there is nothing to say (a thing that is not there)."""
    rows = []
    for scene in scenes:
        row = [LAYOUTS.index((len(scene.things), scene.relation)), BACKGROUND_NAMES.index(scene.background)]
        for thing in scene.things:
            row += [NOUNS.index(thing.noun), COLOUR_NAMES.index(thing.colour or "")]
        rows.append(row + [-1] * (len(HEADS) - len(row)))
    return torch.tensor(rows)


KINDS: tuple[tuple[dict[str, float], str], ...] = (
    ({"two": 0.0}, "one_object"),
    ({"two": 1.0}, "two_objects"),
    ({"two": 0.0, "three": 1.0}, "three_objects"),
    ({"two": 0.5, "three": 0.5, "counted": 1.0}, "counts"),
)
"""Kinds of scenes by the shares that `sample_scene` takes, and the names that figures of them have."""


def soften(x: Tensor, rng: random.Random) -> Tensor:
    """Noise and a little blur, as generated images have them: the judge shall look at shapes, not at crisp edges."""
    x = x + torch.randn_like(x) * torch.rand(len(x), 1, 1, 1, device=x.device) * 0.15
    if rng.random() < 0.35:
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return x


def train_judge(
    folder: Path, corpus: Corpus, *, steps: int, batch: int, seed: int, lr: float, device: torch.device
) -> SceneClassifier:
    """Train the classifier; its corpus shows every colour x noun pair (a judge may know what the generator never saw)."""
    torch.manual_seed(seed)
    model = SceneClassifier().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, target = corpus.images.to(device), labels(corpus.scenes).to(device)

    def loss(step: int, rng: random.Random) -> Tensor:
        shown = torch.randint(len(corpus), (batch,)).to(device)
        x = soften(floats(images[shown]), rng).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            seen = model(x)
        return sum(  # type: ignore[return-value]
            F.cross_entropy(logits.float(), target[shown, i], ignore_index=-1, label_smoothing=0.02)
            for i, logits in enumerate(seen)
        )

    fit(
        "scene-judge", [model], loss, steps=steps, lr=lr, seed=seed, folder=folder, weight_decay=0.02, betas=(0.9, 0.99)
    )
    return model


class SceneJudge:
    """Judges images against the scenes that were asked for."""

    def __init__(self, model: SceneClassifier) -> None:
        self.model = model.eval()

    @classmethod
    @cache
    def load(cls) -> "SceneJudge":
        """The judge that ships with the package."""
        model = SceneClassifier()
        state = load_weights(weights("scene-judge") / "model.safetensors")
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
        return cls(model)

    @torch.inference_mode()
    def see(self, images: Sequence[np.ndarray | Image.Image]) -> list[Scene]:
        """What the judge sees in each image (64 x 64 RGB; other sizes are resized)."""
        seen = []
        for start in range(0, len(images), 256):
            batch = [Image.fromarray(p) if isinstance(p, np.ndarray) else p for p in images[start : start + 256]]
            batch = [
                to_rgb(p).resize((SIZE, SIZE), Image.Resampling.BOX) if p.size != (SIZE, SIZE) else to_rgb(p)
                for p in batch
            ]
            for layout, background, *rest in zip(
                *(g.argmax(1).tolist() for g in self.model(pixels(batch))), strict=True
            ):
                n, relation = LAYOUTS[layout]
                things = [Thing(NOUNS[rest[2 * i]], COLOUR_NAMES[rest[2 * i + 1]]) for i in range(n)]
                seen.append(Scene(tuple(things), BACKGROUND_NAMES[background], relation))
        return seen

    def correct(self, images: Sequence[np.ndarray | Image.Image], scenes: Sequence[Scene]) -> list[bool]:
        """Whether each image shows what its scene asks for: the number of things, each noun, each stated colour, the places.

        The background does not count. With the relation "beside" any order and either direction is right.
        """
        return [satisfies(seen, asked) for seen, asked in zip(self.see(images), scenes, strict=True)]


def satisfies(seen: Scene, asked: Scene) -> bool:
    """Whether what was seen is what was asked for."""
    if asked.relation == "beside":
        orders = list(permutations(asked.things))
    elif seen.relation == asked.relation:
        orders = [asked.things]
    else:
        return False
    return any(
        len(order) == len(seen.things)
        and all(s.noun == a.noun and a.colour in (None, s.colour) for s, a in zip(seen.things, order, strict=True))
        for order in orders
    )


def judge_figures(judge: SceneJudge, *, n: int = 2000, seed: int = 7) -> dict[str, float]:
    """Accuracy on real scenes of every kind, all colour x noun pairs."""
    rng = random.Random(f"judge figures {seed}")
    figures = {}
    for shares, name in KINDS:
        scenes = [sample_scene(rng, split=None, **shares) for _ in range(n // len(KINDS))]
        figures[name] = float(np.mean(judge.correct([render(s) for s in scenes], scenes)))
    return figures
