"""Images to train on: a folder's, or the embedded world's, drawn when they are asked for."""

from __future__ import annotations

import hashlib
import importlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from PIL import Image

from leaf_diffusion.images import ImageFolder
from leaf_diffusion.text.files import first_of_each_image, read_texts

WORLD = "leaf_diffusion.world.class_images"


class Images(Protocol):
    """Images by number; `names` tell them apart, for the identity of a training."""

    @property
    def names(self) -> Sequence[str]: ...

    def load(self, i: int) -> Image.Image:
        """Image `i` in RGB. OSError where it cannot be read."""
        ...


class Pairs(Images, Protocol):
    """Images with a caption each."""

    def caption(self, i: int) -> str: ...


class Chosen:
    """Some of other images."""

    def __init__(self, images: Images, numbers: Sequence[int]) -> None:
        self.images, self.numbers = images, numbers
        self.names = [images.names[i] for i in numbers]

    def load(self, i: int) -> Image.Image:
        return self.images.load(self.numbers[i])


class ChosenPairs(Chosen):
    """Some of other pairs."""

    def __init__(self, pairs: Pairs, numbers: Sequence[int]) -> None:
        super().__init__(pairs, numbers)
        self.pairs = pairs

    def caption(self, i: int) -> str:
        return self.pairs.caption(self.numbers[i])


class CaptionedFolder(Chosen):
    """The images that a file of captions names, in a folder, with the first caption of each."""

    def __init__(self, captions: str | Path, folder: Path, column: str | None = None, split: str | None = None) -> None:
        images, numbers = ImageFolder(folder), list[int]()
        self._captions: list[str] = []
        for row in first_of_each_image(read_texts(captions, column=column, split=split)):
            if row.image is None:
                raise ValueError(f"{row.where}: it does not say which image the caption belongs to (image, file_name)")
            try:
                numbers.append(images.find(row.image))
            except ValueError as error:
                raise ValueError(f"{row.where}: {error}") from error
            self._captions.append(row.text)
        if not numbers:
            raise ValueError(f"{captions} holds no captions")
        super().__init__(images, numbers)

    def caption(self, i: int) -> str:
        return self._captions[i]


def read_pairs(source: str | Path, images: Path | None, column: str | None = None, split: str | None = None) -> Pairs:
    """Captions with their images: of a file and the folder `images`, or "world:N", as many drawn scenes.

    ValueError or FileNotFoundError says what is missing.
    """
    if str(source).partition(":")[0] == "world":
        if (images, column, split) != (None, None, None):
            raise ValueError(f"{source}: --images, --column and --split belong to a file, the world draws its own")
        return _world(source)
    if images is None:
        raise ValueError(f"{source}: name the folder of the images, too (--images)")
    return CaptionedFolder(source, images, column, split)


def read_images(source: str | Path) -> Images:
    """A folder's images; "world" or "world:N" (20,000) gives as many drawn scenes. ValueError or FileNotFoundError for
    others."""
    return _world(source) if str(source).partition(":")[0] == "world" else ImageFolder(source)


def _world(source: str | Path) -> Pairs:
    number = str(source).partition(":")[2]
    if number and not (number.isdecimal() and int(number)):
        raise ValueError(f'"{source}" should read world:N, N images')
    pairs: Pairs = importlib.import_module(WORLD).WorldImages(int(number or 20_000))
    return pairs


class Loading:
    """Decodes images side by side, and passes over files that cannot be read: `unreadable` are the names of those met so
    far, by this process. The first one is told in a warning."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.threads, self.unreadable = threads, set[str]()

    def images(self, images: Images, numbers: Sequence[int]) -> list[Image.Image]:
        """The readable ones of these images. ValueError where none is."""
        return [image for _, image in self._readable(images, numbers)]

    def pairs(self, pairs: Pairs, numbers: Sequence[int]) -> tuple[list[str], list[Image.Image]]:
        """Captions and images of those whose image can be read. ValueError where none can."""
        found = self._readable(pairs, numbers)
        return [pairs.caption(i) for i, _ in found], [image for _, image in found]

    def notes(self) -> dict[str, float]:
        """How many files are unreadable, for the log of a training; nothing where all are whole."""
        return {"unreadable": len(self.unreadable)} if self.unreadable else {}

    def _readable(self, images: Images, numbers: Sequence[int]) -> list[tuple[int, Image.Image]]:
        def load(i: int) -> Image.Image | OSError:
            try:
                return images.load(i)
            except OSError as error:
                return error

        found = []
        for i, image in zip(numbers, self.threads.map(load, numbers), strict=True):
            if not isinstance(image, OSError):
                found.append((i, image))
                continue
            if not self.unreadable:
                warnings.warn(f"{image} (such files are left out; training_log.jsonl counts them)", stacklevel=4)
            self.unreadable.add(images.names[i])
        if not found:
            raise ValueError(f"none of {len(numbers)} images can be read, such as {images.names[numbers[0]]}")
        return found


def split_images(images: Images) -> tuple[Images, Images]:
    """(to train on, held out): those whose names have the lowest hash, at least one. ValueError for fewer than two."""
    some, rest = _split(images.names)
    return Chosen(images, some), Chosen(images, rest)


def split_pairs(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """As `split_images`."""
    some, rest = _split(pairs.names)
    return ChosenPairs(pairs, some), ChosenPairs(pairs, rest)


def _split(names: Sequence[str], share: float = 0.1, at_most: int = 256) -> tuple[list[int], list[int]]:
    n = len(names)
    if n < 2:
        raise ValueError("one image cannot be split: give at least 2, or held-out ones")
    ranked = sorted(range(n), key=lambda i: hashlib.sha256(os.fsencode(names[i])).digest())
    out = set(ranked[: min(max(1, int(share * n)), at_most)])
    return [i for i in range(n) if i not in out], sorted(out)
