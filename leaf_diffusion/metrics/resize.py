"""Resizing as clean-fid does it (Parmar et al., 2022): antialiased, and never rounded to whole numbers in between."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image

from leaf_diffusion.images import to_rgb


def clean_resize(image: Image.Image, size: int) -> Float[np.ndarray, "size size 3"]:
    """The image as RGB in 0..255, float32, by Pillow's bicubic filter on each channel by itself; proportions are not kept.

    An image that was saved as JPEG, or resized otherwise before, carries what that did to it: give both sets untouched.
    """
    channels = np.asarray(to_rgb(image), dtype=np.float32).transpose(2, 0, 1)
    resized = [Image.fromarray(channel).resize((size, size), Image.Resampling.BICUBIC) for channel in channels]
    return np.stack([np.asarray(channel) for channel in resized], axis=-1).clip(0, 255)  # the filter overshoots
