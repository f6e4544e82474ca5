"""The images of a folder, in an order that people expect."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from PIL import Image

from leaf_diffusion.images.read import read_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp")
OTHERS = (".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".pgm", ".tga", ".psd")
"""Images of formats that are not read."""


class ImageFolder:
    """The images of a folder and its sub-folders; `names` are their paths in it, numbers in number order (2 before 10).

    Hidden files and folders are left alone. FileNotFoundError for a folder that is not there, ValueError for one without
    images, and for images of formats that are not read: they would be missing from what is computed. OSError for a
    sub-folder that may not be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no such folder of images: {folder}")
        found = sorted(_files(self.folder), key=number_order)
        self.names = [name for name in found if name.lower().endswith(SUFFIXES)]
        if others := [name for name in found if name.lower().endswith(OTHERS)]:
            raise ValueError(
                f"{self.folder / others[0]}: images of this format are not read ({len(others)} such files); "
                "convert them to PNG, or move them elsewhere"
            )
        if not self.names:
            raise ValueError(f"{folder} holds no images ({', '.join(SUFFIXES)})")

    def path(self, i: int) -> Path:
        return self.folder / self.names[i]

    def load(self, i: int) -> Image.Image:
        """Image `i` in RGB; errors as of `read_image`."""
        return read_image(self.path(i))

    def find(self, wanted: str) -> int:
        """The number of the image of that path in the folder, or else of that file name, wherever it stands below.

        ValueError where it is not there or stands there several times: nothing outside of the folder is ever opened.
        """
        path = PurePosixPath(wanted.replace("\\", "/"))
        if (i := self._by_path.get(path)) is not None:
            return i
        found = self._by_name.get(path.name, [])
        if len(found) != 1:
            problem = "is not in" if not found else f"stands {len(found)} times in"
            raise ValueError(f"the image {wanted!r} {problem} {self.folder}")
        return found[0]

    @cached_property
    def _by_path(self) -> dict[PurePosixPath, int]:
        return {PurePosixPath(Path(name).as_posix()): i for i, name in enumerate(self.names)}

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for i, name in enumerate(self.names):
            found.setdefault(Path(name).name, []).append(i)
        return found


def number_order(name: str) -> tuple[list[tuple[tuple[str, int], ...]], str]:
    """A key to sort paths by: part by part, whole numbers in them by their value."""
    parts = [re.findall(r"([^0-9]*)([0-9]*)", part)[:-1] for part in Path(name).parts]
    return [tuple((text, int(number or -1)) for text, number in part) for part in parts], name


def _files(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise error  # a sub-folder that may not be read would be missing without a word

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (str((Path(place) / name).relative_to(folder)) for name in files if not name.startswith("."))
