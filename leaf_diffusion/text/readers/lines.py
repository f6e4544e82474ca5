"""Texts that stand one a line: plain, JSONL, Flickr's token file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from leaf_diffusion.text.decoding import parse_json, text_lines
from leaf_diffusion.text.readers.rows import OneImageEach, TextRow, record_rows, text_row


def plain_lines(path: Path, column: str | None) -> Iterator[TextRow]:
    """One text a line, blank ones too."""
    for number, line in text_lines(path):
        yield text_row(line, f"{path}, line {number}")


def token_file(path: Path, column: str | None) -> Iterator[TextRow]:
    """Flickr8k and 30k: "1000092795.jpg#0<tab>caption"."""
    for number, line in text_lines(path):
        image, tab, text = line.partition("\t")
        if not line.strip():
            continue
        if not tab or "#" not in image:
            raise ValueError(f"{path}, line {number}: expected IMAGE#NUMBER, a tab and the caption")
        yield text_row(text, f"{path}, line {number}", image=image.rpartition("#")[0].strip())


def jsonl(path: Path, column: str | None) -> Iterator[TextRow]:
    """A text or an object a line."""
    images = OneImageEach()
    for number, line in text_lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            record = parse_json(line, where)
            images.check_record(record, where)
            yield from record_rows(record, column, where)
