"""Images from files: one reader of a file, one of a folder."""

from leaf_diffusion.images.folder import ImageFolder
from leaf_diffusion.images.read import (
    FORMATS,
    PNG_END,
    UnreadableImageError,
    decode_image,
    png_ok,
    read_image,
    to_rgb,
    whole_png,
)

__all__ = [
    "FORMATS",
    "PNG_END",
    "ImageFolder",
    "UnreadableImageError",
    "decode_image",
    "png_ok",
    "read_image",
    "to_rgb",
    "whole_png",
]
