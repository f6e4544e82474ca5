"""Images to train on: a folder's, or the embedded world's, drawn when they are asked for."""

from __future__ import annotations

import hashlib
import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, cast

from PIL import Image

from leaf_diffusion.text.files import first_of_each_image, read_texts

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
WORLD = "leaf_diffusion.world.class_images"


class Images(Protocol):
    """Images by number; `names` tell them apart, for the identity of a training."""

    @property
    def names(self) -> Sequence[str]: ...

    def load(self, i: int) -> Image.Image | None:
        """Image `i` in RGB, None where it cannot be read."""
        ...


class Pairs(Images, Protocol):
    """Images with a caption each."""

    def caption(self, i: int) -> str: ...


class ImageFolder:
    """The images of a folder and its sub-folders, in the order of their names. ValueError for a folder without any."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no such folder of images: {folder}")
        self.names = sorted(_found(self.folder))
        if not self.names:
            raise ValueError(f"{folder} holds no images ({', '.join(SUFFIXES)})")

    def load(self, i: int) -> Image.Image | None:
        return read_image(self.folder / self.names[i])


class Chosen:
    """Some of other images."""

    def __init__(self, images: Images, numbers: Sequence[int]) -> None:
        self.images, self.numbers = images, numbers
        self.names = [images.names[i] for i in numbers]

    def load(self, i: int) -> Image.Image | None:
        return self.images.load(self.numbers[i])


class ChosenPairs(Chosen):
    """Some of other pairs."""

    def __init__(self, pairs: Pairs, numbers: Sequence[int]) -> None:
        super().__init__(pairs, numbers)
        self.pairs = pairs

    def caption(self, i: int) -> str:
        return self.pairs.caption(self.numbers[i])


class CaptionedFolder:
    """The images that a file of captions names, in a folder, with the first caption of each."""

    def __init__(self, captions: str | Path, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise FileNotFoundError(f"no such folder of images: {folder}")
        self._captions: dict[str, str] = {}
        for row in first_of_each_image(read_texts(captions)):
            if row.image is None:
                raise ValueError(f"{row.where}: it does not say which image the caption belongs to (image, file_name)")
            path = (folder / row.image).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise ValueError(f"{row.where}: the image {row.image!r} lies outside of {folder}")
            if not path.is_file():
                raise FileNotFoundError(f"{row.where}: no image {path}")
            self._captions[row.image] = row.text
        self.names: Sequence[str] = list(self._captions)
        if not self.names:
            raise ValueError(f"{captions} holds no captions")

    def load(self, i: int) -> Image.Image | None:
        return read_image(self.folder / self.names[i])

    def caption(self, i: int) -> str:
        return self._captions[self.names[i]]


def read_pairs(source: str | Path, images: Path | None) -> Pairs:
    """Captions with their images: of a file and the folder `images`, or "world:N", as many drawn scenes.

    ValueError or FileNotFoundError says what is missing.
    """
    if str(source).partition(":")[0] == "world":
        return cast(Pairs, read_images(source))
    if images is None:
        raise ValueError(f"{source}: name the folder of the images, too (--images)")
    return CaptionedFolder(source, images)


def split_pairs(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """As `split_images`."""
    some, rest = (cast(Chosen, part) for part in split_images(pairs))
    return ChosenPairs(pairs, some.numbers), ChosenPairs(pairs, rest.numbers)


def load_pairs(
    pairs: Pairs, numbers: Sequence[int], threads: ThreadPoolExecutor
) -> tuple[list[str], list[Image.Image]]:
    """Captions and images of those whose image can be read. ValueError where none can."""
    found = list(zip(numbers, threads.map(pairs.load, numbers), strict=True))
    readable = [(pairs.caption(i), image) for i, image in found if image is not None]
    if not readable:
        raise ValueError(f"none of {len(numbers)} images can be read, such as {pairs.names[numbers[0]]}")
    return [caption for caption, _ in readable], [image for _, image in readable]


def read_images(source: str | Path) -> Images:
    """A folder's images; "world" or "world:N" (20,000) gives as many drawn scenes. ValueError or FileNotFoundError for
    others."""
    prefix, _, number = str(source).partition(":")
    if prefix != "world":
        return ImageFolder(source)
    if number and not (number.isdecimal() and int(number)):
        raise ValueError(f'"{source}" should read world:N, N images')
    return cast(Images, importlib.import_module(WORLD).WorldImages(int(number or 20_000)))


def read_image(path: Path) -> Image.Image | None:
    """A file in RGB, None where it holds no whole image of a size that Pillow takes for harmless."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                return image.convert("RGB")
    except Exception:  # Pillow's plugins let struct's, zlib's and a dozen others through
        return None


def load_some(images: Images, numbers: Sequence[int], threads: ThreadPoolExecutor) -> list[Image.Image]:
    """The readable ones of these images, decoded side by side. ValueError where none is."""
    found = [image for image in threads.map(images.load, numbers) if image is not None]
    if not found:
        raise ValueError(f"none of {len(numbers)} images can be read, such as {images.names[numbers[0]]}")
    return found


def split_images(images: Images, share: float = 0.1, at_most: int = 256) -> tuple[Images, Images]:
    """(to train on, held out): those whose names have the lowest hash, at least one. ValueError for fewer than two."""
    n = len(images.names)
    if n < 2:
        raise ValueError("one image cannot be split: give at least 2, or held-out ones")
    ranked = sorted(range(n), key=lambda i: hashlib.sha256(os.fsencode(images.names[i])).digest())
    out = set(ranked[: min(max(1, int(share * n)), at_most)])
    return Chosen(images, [i for i in range(n) if i not in out]), Chosen(images, sorted(out))


def _found(folder: Path) -> Iterator[str]:
    for place, _, files in os.walk(folder):
        for name in files:
            if name.lower().endswith(SUFFIXES):
                yield str((Path(place) / name).relative_to(folder))
