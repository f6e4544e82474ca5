"""A record as one line of a file: canonical JSON that ends in its own checksum."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from leaf_diffusion.runs.files import RunFolderError, read_plain
from leaf_diffusion.runs.records import Record, parse
from leaf_diffusion.runs.spec import canonical_json

R = TypeVar("R", bound=Record)
_SUM = re.compile(rb',"sum":"([0-9a-f]{16})"\}\Z')


class DamagedRecords(RunFolderError, ValueError):
    """A file of records holds a line that nobody wrote so; the message names file and line."""


def encode(record: Mapping[str, object]) -> bytes:
    """The line of a record, without its end: sorted keys, then "sum", 64 bits of the sha256 of what stands before it.

    Raises ValueError for what JSON cannot hold, NaN too, and for a record with a "sum" of its own.
    """
    if "sum" in record:
        raise ValueError('"sum" is the name of a line\'s checksum')
    body = canonical_json(dict(record)).encode()
    return body[:-1] + b',"sum":"' + _sum(body) + b'"}'


def decode(line: bytes) -> dict[str, object]:
    """The record of a line. Raises ValueError, or RecursionError, where a bit of it is not as it was written.

    Lines from before there were checksums are told by their spaces, which a line with one has not: so a bit that flips
    inside of the checksum's name makes no line without a checksum.
    """
    found = _SUM.search(line)
    body = line[: found.start()] + b"}" if found else line
    if found and _sum(body) != found[1]:
        raise ValueError("its checksum does not fit")
    text = body.decode()
    record = json.loads(text)
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        raise ValueError('a record is a JSON object with a text "id"')
    if text != (canonical_json(record) if found else json.dumps(record, ensure_ascii=False, allow_nan=False)):
        raise ValueError("it is not spelled as records are written")
    return record


def read_jsonl(path: Path, model: type[R]) -> tuple[list[R], int, int]:
    """Records of a file, one a line, the byte length of the lines that are whole, and the bytes of a torn end (0: none).

    A last line without its newline, or one that `decode` refuses, was cut by a crash: its unit is computed again. A line
    further up cannot be hurt by a crash, so the disk, the memory or a hand did it, and perhaps not to this line alone:
    DamagedRecords, for people to look. So is a line that is whole and does not fit the model.
    """
    try:
        data = read_plain(path)
    except FileNotFoundError:
        return [], 0, 0
    records: list[R] = []
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        try:
            record = decode(data[start:end] if end >= 0 else b"")
        except (ValueError, RecursionError) as error:
            if end < 0 or end == len(data) - 1:
                return records, start, len(data) - start
            raise damaged(path, len(records) + 1, error) from error
        records.append(checked(record, model, path, len(records) + 1))
        start = end + 1
    return records, start, 0


def damaged(path: Path, line: int, error: object) -> DamagedRecords:
    said = f"{path}, line {line} is damaged ({error}); delete that line: its unit is computed again"
    return DamagedRecords(said)


def checked(record: Mapping[str, object], model: type[R], path: Path, line: int) -> R:
    """A decoded line as a model. Raises DamagedRecords naming file, line and field."""
    try:
        return parse(model, record)
    except ValueError as error:
        raise damaged(path, line, error) from error


def _sum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()
