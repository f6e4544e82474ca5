"""Images as data URIs of bounded size."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

THUMBNAIL = 208
SMALL = 128


@lru_cache(maxsize=4096)
def data_uri(path: Path) -> tuple[str, bool]:
    """(data URI, whether to enlarge it by whole pixels). Larger images become JPEG thumbnails of 208 pixels."""
    with Image.open(path, formats=["PNG"]) as image:
        small = max(image.size) <= SMALL
        if small:
            return _uri("png", path.read_bytes()), True
        thumbnail = image.convert("RGB")
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    thumbnail.save(buffer, format="JPEG", quality=86)
    return _uri("jpeg", buffer.getvalue()), False


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
