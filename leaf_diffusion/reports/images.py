"""Images as data URIs of bounded size."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

from leaf_diffusion.images import read_image

THUMBNAIL = 208
SMALL = 128


@lru_cache(maxsize=4096)
def data_uri(path: Path) -> tuple[str, bool]:
    """(data URI, whether to enlarge it by whole pixels). Larger images become JPEG thumbnails of 208 pixels."""
    image = read_image(path, formats=["PNG"])
    if max(image.size) <= SMALL:
        return _uri("png", path.read_bytes()), True
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=86)
    return _uri("jpeg", buffer.getvalue()), False


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
