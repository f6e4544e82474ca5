"""Images and captions to train on, drawn once by all cores and kept in memory.

Scenes come beside their `twin`: a batch of whole pairs asks for binding and order (which colour is whose, what is left of
what), which a random batch hardly ever does.
"""

import multiprocessing
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from leaf_diffusion.tokens.tokenizer import clip_tokenizer
from leaf_diffusion.world.captions import describe, web_caption
from leaf_diffusion.world.scenes import SIZE, Scene, Split, render, sample_scene, twin

CHUNK = 500
EOS, LENGTH = 49407, 77


@dataclass(frozen=True)
class Mix:
    """What a corpus holds: shares of scenes of two and three things, of counts among these, of small single things; captions
    an image, and how many of them have unrelated words and typos."""

    two: float = 0.4
    three: float = 0.25
    counted: float = 0.2
    small: float = 0.1
    split: Split | None = "train"
    captions: int = 2
    filler: float = 0.25
    typo: float = 0.05


@dataclass(frozen=True)
class Corpus:
    """`images` uint8 [n, 3, side, side], image 2i beside its twin 2i + 1; `rows` int32 [n * captions, 77] their captions'
    tokens, filled up with end-of-text, those of image i from i times `mix.captions` on, those of a twin by the same templates.
    """

    scenes: Sequence[Scene]
    images: Tensor
    rows: Tensor
    mix: Mix

    def __len__(self) -> int:
        return len(self.scenes)

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each caption, int64 [n * captions]."""
        return (self.rows != EOS).sum(1) + 1

    def pairs(self, n: int, rng: random.Random) -> tuple[Tensor, Tensor]:
        """(images, captions) of a batch: int64 [n] each, n // 2 scenes and their twins, each pair by one template."""
        drawn = torch.tensor([rng.randrange(len(self) // 2) for _ in range(n // 2)])
        told = torch.tensor([rng.randrange(self.mix.captions) for _ in range(n // 2)])
        images = torch.stack((2 * drawn, 2 * drawn + 1), 1)
        return images.flatten(), (images * self.mix.captions + told[:, None]).flatten()


def floats(images: Tensor) -> Tensor:
    """uint8 images to float32 in -1..1."""
    return images.float().div_(127.5).sub_(1)


def _chunk(start: int, *, seed: int, n: int, mix: Mix) -> tuple[list[Scene], np.ndarray, np.ndarray]:
    rng = random.Random(f"corpus {seed} {start}")
    scenes, captions = list[Scene](), list[str]()
    for _ in range(min(CHUNK, n - start) // 2):
        scene = sample_scene(rng, two=mix.two, three=mix.three, counted=mix.counted, split=mix.split, small=mix.small)
        states = [rng.getrandbits(64) for _ in range(mix.captions)]
        for one in (scene, twin(scene, rng)):
            scenes.append(one)
            texts = (describe(one, random.Random(state))[0] for state in states)
            captions += [web_caption(text, rng, filler=mix.filler, typo=mix.typo) for text in texts]
    rows = np.full((len(captions), LENGTH), EOS, np.int32)
    for row, tokens in zip(rows, clip_tokenizer()(captions, truncation=True)["input_ids"], strict=True):
        row[: len(tokens)] = tokens
    return scenes, np.stack([render(scene) for scene in scenes]).transpose(0, 3, 1, 2), rows


def draw_corpus(n: int, seed: int, mix: Mix | None = None, *, processes: int | None = None) -> Corpus:
    """Draw `n` images (an even number) and their captions; the same for any number of `processes` (default: a core each)."""
    mix = mix or Mix()
    if n < 2 or n % 2:
        raise ValueError(f"a corpus holds pairs of images, so an even number of them; {n} were asked for")
    draw, starts = partial(_chunk, seed=seed, n=n, mix=mix), range(0, n, CHUNK)
    scenes, filled = list[Scene](), 0
    images = torch.empty((n, 3, SIZE, SIZE), dtype=torch.uint8)
    rows = torch.empty((n * mix.captions, LENGTH), dtype=torch.int32)
    clip_tokenizer()  # made once, before the processes part
    with multiprocessing.get_context("fork").Pool(processes or os.cpu_count()) as pool:
        for some, drawn, told in pool.imap(draw, starts):
            scenes += some
            images[filled : filled + len(drawn)] = torch.from_numpy(drawn)
            rows[filled * mix.captions :][: len(told)] = torch.from_numpy(told)
            filled += len(drawn)
    return Corpus(scenes, images, rows, mix)
