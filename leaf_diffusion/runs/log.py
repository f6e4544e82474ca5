"""Append-only files of records: a record is one line of canonical JSON that ends in its own checksum."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from leaf_diffusion.runs.files import RunFolderError, explained, open_plain, read_plain, sync_folder, write_all
from leaf_diffusion.runs.records import Record, parse, said
from leaf_diffusion.runs.spec import canonical_json

R = TypeVar("R", bound=Record)
_SUM = re.compile(rb',"sum":"([0-9a-f]{16})"\}')
_SUM_BYTES = 26


class DamagedRecords(RunFolderError, ValueError):
    """A file of records holds a line that nobody wrote so; the message names file and line."""


class UnfitRecord(ValueError):
    """A line is whole, and its record does not fit the model; the message names the field."""


def encode(record: Mapping[str, object]) -> bytes:
    """The line of a record, without its end: sorted keys, then "sum", 64 bits of the sha256 of what stands before it.

    Raises ValueError for what JSON cannot hold, NaN too, and for a record with a "sum" of its own.
    """
    if "sum" in record:
        raise ValueError('"sum" is the name of a line\'s checksum')
    body = canonical_json(dict(record)).encode()
    return body[:-1] + b',"sum":"' + _sum(body) + b'"}'


def read_line(line: bytes, model: type[R]) -> R:
    """The record of a line. Raises UnfitRecord, and ValueError or RecursionError where a bit of it is not as it was written.

    Lines from before there were checksums are told by their spaces, which a line with one has not: so a bit that flips
    inside of the checksum's name makes no line without a checksum.
    """
    if found := _SUM.fullmatch(line, max(0, len(line) - _SUM_BYTES)):
        body = line[:-_SUM_BYTES] + b"}"
        if _sum(body) != found[1]:
            raise ValueError("its checksum does not fit")
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            raise UnfitRecord(said(error)) from None
    text = line.decode()
    record = json.loads(text)
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        raise ValueError('a record is a JSON object with a text "id"')
    if text != json.dumps(record, ensure_ascii=False, allow_nan=False):
        raise ValueError("it is not spelled as records are written")
    try:
        return parse(model, record)
    except ValueError as error:
        raise UnfitRecord(str(error)) from None


def read_jsonl(path: Path, model: type[R]) -> tuple[list[R], int, int]:
    """Records of a file, one a line, the byte length of the lines that are whole, and the bytes of a torn end (0: none).

    A last line without its newline, or one that is not as it was written, was cut by a crash: its unit is computed again. A line
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
            records.append(read_line(data[start:end] if end >= 0 else b"", model))
        except UnfitRecord as error:
            raise damaged(path, len(records) + 1, error) from error
        except (ValueError, RecursionError) as error:
            if end < 0 or end == len(data) - 1:
                return records, start, len(data) - start
            raise damaged(path, len(records) + 1, error) from error
        start = end + 1
    return records, start, 0


def damaged(path: Path, line: int, error: object) -> DamagedRecords:
    said = f"{path}, line {line} is damaged ({error}); delete that line: its unit is computed again"
    return DamagedRecords(said)


class Log:
    """A JSONL file whose first `size` bytes are whole lines: a torn end is cut on opening, a failed write at once.

    A record reaches the kernel at once (it survives a killed process) and the disk within `fsync_seconds` of appends.
    model: what every record has to be.
    """

    def __init__(self, path: Path, fsync_seconds: float, model: type[Record] = Record) -> None:
        self.path, self.fsync_seconds, self.model = path, fsync_seconds, model
        with explained(path, "reading"):
            records, self.size, self.torn = read_jsonl(path, model)
        self.records: dict[str, Record] = {}
        for record in records:
            self.records.setdefault(record.id, record)
        self.fd: int | None = None
        if self.torn:
            with explained(path, "opening"):
                os.ftruncate(self._open(), self.size)
        self.synced = time.monotonic()
        self.dirty = bool(self.torn)
        self.unsettled = False

    def append(self, record: Record) -> bool:
        """False, and nothing written, when the id stands there already. Raises ValueError for what is no record of the
        model, or no JSON."""
        unit = record.id
        if unit in self.records:
            return False
        try:
            line = encode(record.model_dump(exclude_unset=True))
        except ValueError as error:
            raise ValueError(f"record {unit!r} does not fit into JSON: {error}") from error
        try:
            copy = read_line(line, self.model)  # as a later process reads it
        except UnfitRecord as error:
            raise ValueError(f"record {unit!r}: {error}") from error
        with explained(self.path, "writing"):
            fd = self._open()
            if self.unsettled:  # a torn line may stand there still: this one must not be glued to it
                os.ftruncate(fd, self.size)
            self.unsettled = True
            try:
                write_all(fd, line + b"\n")
            except OSError:
                with suppress(OSError):
                    os.ftruncate(fd, self.size)
                    self.unsettled = False
                raise
        self.size += len(line) + 1
        self.unsettled = False
        self.records[unit] = copy
        self.dirty = True
        if time.monotonic() - self.synced >= self.fsync_seconds:
            self.sync()
        return True

    def sync(self) -> None:
        """Force the file onto the disk."""
        if self.dirty and self.fd is not None:
            with explained(self.path, "writing"):
                os.fsync(self.fd)
            self.dirty = False
        self.synced = time.monotonic()

    def close(self) -> None:
        """Without a sync."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def _open(self) -> int:
        """The descriptor; a file that only was asked for records is not made."""
        if self.fd is None:
            new = not self.path.exists()
            self.fd = open_plain(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            if new:
                sync_folder(self.path.parent)
        return self.fd


def cut_torn_end(path: Path) -> int:
    """Cut what a crash left behind the last whole line of a file that nobody writes; returns its bytes."""
    with explained(path, "opening"):
        _, whole, torn = read_jsonl(path, Record)
        if torn:
            os.truncate(path, whole)
    return torn


def _sum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()
