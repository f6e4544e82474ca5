"""The images of a run folder: whole, and those that were recorded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from leaf_diffusion.images import PNG_END, whole_png
from leaf_diffusion.runs.files import RunFolderError, open_plain, read_plain
from leaf_diffusion.runs.records import IMAGE, OfImage, OfImages, Record

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
        data = read_plain(path)
        if record.sha256 is None:
            whole_png(path, data)
        return record.sha256 in (None, sha256(data))
    except OSError:
        return False


def damaged_images(folder: Path, record: Record) -> list[str]:
    """A record's images that are missing or cut, by their begin, end and recorded size: decoding takes an hour for 100,000
    of 512 pixels."""
    if isinstance(record, OfImage):
        return [] if seems_whole(folder / record.image, record.size) else [record.image]
    return [path for path in record.images if not seems_whole(folder / path)] if isinstance(record, OfImages) else []


def described(path: Path) -> dict[str, str | int]:
    """`sha256` and `size` of an image for its record; nothing where it is not there."""
    try:
        data = read_plain(path)
    except FileNotFoundError:
        return {}
    return {"sha256": sha256(data), "size": len(data)}


def with_digests(folder: Path, record: Record) -> Record:
    """The record with the digests of the images that it names, where it has none yet."""
    if isinstance(record, OfImage) and record.sha256 is None:
        return record.model_copy(update=described(folder / record.image))
    if isinstance(record, OfImages) and not record.sha256s:
        return record.model_copy(update={"sha256s": [sha256(read_plain(folder / path)) for path in record.images]})
    return record


def digests(record: Record) -> dict[str, str]:
    """What a record says of its images: the sha256 by path."""
    if isinstance(record, OfImage):
        return {} if record.sha256 is None else {record.image: record.sha256}
    return dict(zip(record.images, record.sha256s, strict=False)) if isinstance(record, OfImages) else {}


def recorded_images(folder: Path, record: OfImage | OfImages) -> list[Path]:
    """The files of a record's images. RunFolderError for one that is missing or not the one that was recorded."""
    known, found = digests(record), list[Path]()
    for path in [record.image] if isinstance(record, OfImage) else record.images:
        file = folder / checked_name(path)
        whole_png(file, data := read_plain(file) if seems_whole(file) else b"")
        refuse_another(file, known.get(path), data, "shown")
        found.append(file)
    return found


def refuse_another(path: Path, recorded: str | None, data: bytes, doing: str) -> None:
    """RunFolderError where `data` are not what the run recorded."""
    if recorded is not None and sha256(data) != recorded:
        raise RunFolderError(
            f"{path}, {doing}, is not the image that was recorded (its sha256 differs); remove it and run the same command "
            "again, with the same versions and hardware: it draws it again"
        )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
