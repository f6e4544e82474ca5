"""From an image file to RGB: the one place where files are decoded and where modes become RGB."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Told by a file's content, never by its name; no other decoder of Pillow's is started."""
MAX_PIXELS = 64_000_000
WHITE = (255, 255, 255)
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(OSError):
    """A file that is no whole image of a format and size that are read; the message names it."""


def read_image(
    path: str | Path, *, formats: Sequence[str] = FORMATS, ground: tuple[int, int, int] = WHITE
) -> Image.Image:
    """The image of a file in RGB, upright, on `ground` where it is transparent; of an animation the first frame.

    Raises FileNotFoundError or UnreadableImageError, which name the file.
    """
    image = decode_image(path, formats=formats)
    try:
        return to_rgb(image, ground)
    except ValueError as error:
        raise UnreadableImageError(f"{path}: {error}") from error


def decode_image(path: str | Path, *, formats: Sequence[str] = FORMATS, data: bytes | None = None) -> Image.Image:
    """The image of a file, decoded, in the mode and orientation in which it is stored. Errors as of `read_image`.

    data: the file's bytes, where they were read already; `path` then only names them.
    """
    if data is None and not Path(path).is_file():
        raise FileNotFoundError(f"no such image file: {path}")
    try:
        with Image.open(path if data is None else io.BytesIO(data), formats=tuple(formats)) as image:
            if (pixels := image.width * image.height) > MAX_PIXELS:
                raise UnreadableImageError(f"{path}: {pixels:,} pixels, more than {MAX_PIXELS:,}; make it smaller")
            return image.copy()
    except UnreadableImageError:
        raise
    except Image.UnidentifiedImageError:
        known = ", ".join(formats)
        raise UnreadableImageError(f"{path} is no {known} image inside; convert it or remove it") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"{path}: {error}") from error
    except Exception as error:  # Pillow's plugins let struct's, zlib's and a dozen others through
        if isinstance(error, OSError) and error.errno is not None:
            raise UnreadableImageError(f"{path} cannot be read: {error.strerror}") from error
        raise UnreadableImageError(f"{path} holds no whole image ({error}); replace it or remove it") from error


def to_rgb(image: Image.Image, ground: tuple[int, int, int] = WHITE) -> Image.Image:
    """An image of any mode, from a file or not, as a new one in RGB, pixels only: upright as its EXIF data say, 16 bits
    scaled to 8, transparency on `ground`.

    ValueError for values that have no scale (floats, integers beyond 16 bits). Pillow does not apply a PNG's single
    transparent colour where that has 16 bits a channel, or is a grey of 2 or 4 bits: such pixels stay as they are.
    """
    if (turn := _UPRIGHT.get(_orientation(image))) is not None:
        image = image.transpose(turn)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _from_sixteen_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*ground, 255)), image)
    image = image.convert("RGB")
    image.info.clear()  # what they say was done: nobody turns the image again
    return image


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1, as stored, where the EXIF data are damaged."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # many kinds, as above; the pixels are whole
        return 1


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (0..65535) in 8, rounded; as LA where one grey is marked as transparent."""
    values = np.asarray(image)
    if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError(f"values of mode {image.mode} have no scale; save the image with 8 or 16 bits")
    grey = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    marked = image.info.get("transparency")
    if not isinstance(marked, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == marked, 0, 255).astype(np.uint8))))


def whole_png(path: str | Path, data: bytes) -> Image.Image:
    """The image of a PNG file's bytes, as `decode_image`, and stricter: the last byte is there, all checksums hold.

    Raises UnreadableImageError, which names the file.
    """
    try:
        if not data.endswith(PNG_END):  # Pillow reads over a cut inside of the last chunk
            raise ValueError("its end is missing")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                image.verify()  # reads all chunks, decodes none; the image cannot be decoded after it
            return decode_image(path, formats=["PNG"], data=data)
    except UnreadableImageError:
        raise
    except Exception as error:  # as above
        raise UnreadableImageError(f"{path} is no whole PNG ({error})") from error


def png_ok(path: str | Path) -> bool:
    """Whether a file is a whole PNG of bounded size: its last byte is there, checksums hold, it decodes."""
    try:
        whole_png(path, Path(path).read_bytes() if Path(path).is_file() else b"")
    except OSError:
        return False
    return True
