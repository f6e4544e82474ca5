"""JSON that is one value: COCO captions, the Karpathy split, plain lists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from leaf_diffusion.text.decoding import open_bytes, parse_json, utf8
from leaf_diffusion.text.readers.rows import OneImageEach, TextRow, find_column, plain, record_rows

LONGEST_JSON = 1 << 30
"""Bytes of a JSON file, which is read as a whole; COCO's are 0.1 GB."""


def document(path: Path, column: str | None) -> Iterator[TextRow]:
    """The captions of a JSON file, in its order."""
    with open_bytes(path) as file:
        data = file.read(LONGEST_JSON + 1)
    if len(data) > LONGEST_JSON:
        raise ValueError(f"{path}: more than {LONGEST_JSON:,} bytes are too many for one JSON value; write JSONL")
    content = parse_json(utf8(data, str(path)), str(path))
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        yield from _coco(content, column, path)
        return
    records = content.get("images") if isinstance(content, dict) else content
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a list, COCO captions (annotations) or a Karpathy split (images)")
    images = _KarpathyImages() if isinstance(content, dict) else OneImageEach()
    for i, record in enumerate(records):
        images.check_record(record, f"{path}, item {i}")
        yield from record_rows(record, column, f"{path}, item {i}")


def _coco(content: dict[str, object], column: str | None, path: Path) -> Iterator[TextRow]:
    images, annotations = content.get("images", []), content["annotations"]
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise ValueError(f"{path}: expected COCO's images to be a list of objects")
    names, seen = dict[str, str](), OneImageEach()
    for i, image in enumerate(images):
        number = plain(image.get("id"))
        if number is None:
            raise ValueError(f"{path}, image {i}: it has no id")
        names[number] = plain(image.get("file_name")) or number
        seen.check(number, names[number], f"{path}, image {i}")
    assert isinstance(annotations, list)
    for i, one in enumerate(annotations):
        where = f"{path}, annotation {i}"
        number = plain(one.get("image_id")) if isinstance(one, dict) else None
        if number is None and names and isinstance(one, dict):
            raise ValueError(f"{where}: it has no image_id")
        if number is not None and names and number not in names:
            raise ValueError(f"{where}: no image has the id {number[:80]!r}")
        text = column or (find_column(list(one), ("caption",)) if isinstance(one, dict) else None) or "caption"
        yield from record_rows(one, text, where, None if number is None else names.get(number, number))


class _KarpathyImages(OneImageEach):
    """There, a record is an image: its name must not stand twice."""

    def check_record(self, record: object, where: str) -> None:
        super().check_record(record, where)
        if isinstance(record, dict) and (name := plain(record.get("filename"))) is not None:
            self.check(f"filename {name}", where, where)
