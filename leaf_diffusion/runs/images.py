"""The images of a run folder: whole, and those that were recorded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from leaf_diffusion.images import PNG_END, whole_png
from leaf_diffusion.runs.files import RunFolderError, open_plain, read_plain
from leaf_diffusion.runs.records import IMAGE, OfImage

_BEGIN = b"\x89PNG\r\n\x1a\n"


def checked_name(path: str) -> str:
    """ValueError for a name that `image_name` does not make."""
    if not IMAGE.fullmatch(path):
        raise ValueError(f"an image is kept as images/<hexadecimal digits>.png, not {path!r}")
    return path


def seems_whole(path: Path, size: int | None = None) -> bool:
    """Whether a file has the begin and the end of a PNG, and the recorded size: what a crash leaves has not. Reads 20
    bytes; `is_recorded` decodes everything."""
    try:
        with open(open_plain(path), "rb") as file:
            length = os.fstat(file.fileno()).st_size
            if length < len(_BEGIN) + len(PNG_END) or length != (size or length) or file.read(len(_BEGIN)) != _BEGIN:
                return False
            file.seek(-len(PNG_END), os.SEEK_END)
            return file.read() == PNG_END
    except OSError:
        return False


def is_recorded(path: Path, record: OfImage) -> bool:
    """Whether the file is that image, whole: by its sha256, or, for a run from before these, by decoding it."""
    try:
        whole_png(path, data := read_plain(path))
        return record.sha256 is None or sha256(data) == record.sha256
    except OSError:
        return False


def described(path: Path) -> dict[str, str | int]:
    """`sha256` and `size` of an image for its record; nothing where it is not there."""
    try:
        data = read_plain(path)
    except FileNotFoundError:
        return {}
    return {"sha256": sha256(data), "size": len(data)}


def refuse_another(path: Path, recorded: str | None, data: bytes, doing: str) -> None:
    """RunFolderError where `data` are not what the run recorded."""
    if recorded is not None and sha256(data) != recorded:
        raise RunFolderError(
            f"{path}, {doing}, is not the image that was recorded (its sha256 differs); remove it and run the same command "
            "again, with the same versions and hardware: it draws it again"
        )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
