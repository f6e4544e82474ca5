"""One append-only JSONL file, and the lock that keeps a run folder to one writer."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from leaf_diffusion.runs.files import RunFolderError, explained, open_plain, sync_folder, write_all
from leaf_diffusion.runs.lines import decode, encode, read_jsonl
from leaf_diffusion.runs.records import Record, parse
from leaf_diffusion.text.visible import visible


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
        """False, and nothing written, when the id stands there already."""
        unit = record.id
        if unit in self.records:
            return False
        try:
            line = encode(record.model_dump(exclude_unset=True))
        except ValueError as error:
            raise ValueError(f"record {unit!r} does not fit into JSON: {error}") from error
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
        self.records[unit] = parse(self.model, decode(line))  # a copy, as a later process reads it
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


def take_lock(path: Path, *, shared: bool = False) -> int:
    """Hold `path` exclusively, or together with others that hold it `shared`; returns the descriptor to close.

    Raises RunFolderError naming the other writer. The kernel drops the lock with its process, so what a dead writer left
    needs no clearing.
    """
    with explained(path, "locking"):
        fd = open_plain(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = visible(os.read(fd, 200).decode(errors="replace").strip()) or "another process"
            os.close(fd)
            message = f"{path.parent} is being written by {owner}; wait for it, or choose another output folder"
            raise RunFolderError(message) from error
        except OSError:
            os.close(fd)
            raise
        with suppress(OSError):  # the owner's name is a courtesy: the probe finds a full disk, with its own message
            os.ftruncate(fd, 0)
            os.write(fd, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return fd
