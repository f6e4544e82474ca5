"""Captions and the images they describe, one caption an image, for text-to-image retrieval."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from leaf_diffusion.images import ImageFolder
from leaf_diffusion.text.files import TextRow, first_of_each_image, read_texts
from leaf_diffusion.world.captions import full_prompts
from leaf_diffusion.world.scenes import render


@dataclass(frozen=True)
class Gallery:
    """`captions[i]` describes image i and, as far as the data tell, no other one.

    `names` identify the images' contents; `shared` counts captions that were left out, with their images, because
    several images have them. Captions of one name in `clusters` fall together.
    """

    captions: Sequence[str]
    names: Sequence[str]
    load: Callable[[int], Image.Image]
    shared: int = 0
    clusters: Sequence[str] = ()


def world_gallery(n: int, seed: int) -> Gallery:
    """Scenes of one and of two things, all distinct, with captions that name all there is: no caption fits a second
    image."""
    prompts = full_prompts(n, seed)
    names = [hashlib.sha256(repr(prompt.scene).encode()).hexdigest() for prompt in prompts]
    nouns = [prompt.scene.things[0].noun for prompt in prompts]
    texts = [prompt.text for prompt in prompts]
    return Gallery(texts, names, lambda i: Image.fromarray(render(prompts[i].scene)), clusters=nouns)


def file_gallery(captions: Path, folder: Path, *, column: str | None, split: str | None, n: int) -> Gallery:
    """The first `n` images that a file names, with the first caption of each; captions of several images left out.

    `captions`: whatever `read_texts` reads that says which image a caption belongs to (COCO captions, the Karpathy
    split, Flickr30k, JSONL with "image" and "caption"). An image is looked for in `folder` and below, by its path there
    or by its file name. Raises ValueError or FileNotFoundError naming the first that is wrong.
    """
    rows = first_of_each_image(read_texts(captions, column=column, split=split))
    of_split = "" if split is None else f" of split {split!r}"
    if not rows:
        raise ValueError(f"{captions} holds no captions{of_split}")
    for row in rows:
        if row.image is None:
            raise ValueError(f'{row.where}: no image is named; retrieval needs a column "image" or "file_name"')
        if not row.text:
            raise ValueError(f"{row.where}: an empty caption; remove it")
    often = Counter(_meaning(row) for row in rows)
    kept = [row for row in rows if often[_meaning(row)] == 1]
    shared = len(rows) - len(kept)
    images, numbers = ImageFolder(folder), list[int]()
    for row in kept[:n]:
        try:
            numbers.append(images.find(str(row.image)))
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from error
    paths = [images.path(i) for i in numbers]
    names = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    if twins := [name for name, times in Counter(names).items() if times > 1]:
        first, second = [path for path, name in zip(paths, names, strict=True) if name == twins[0]][:2]
        raise ValueError(f"{first} and {second} are one image, with two captions: no answer could be right")
    for i in numbers:  # a broken image shows before the long work
        images.load(i)
    return Gallery([row.text for row in kept[:n]], names, lambda i: images.load(numbers[i]), shared)


def _meaning(row: TextRow) -> str:
    return " ".join(row.text.lower().split())
