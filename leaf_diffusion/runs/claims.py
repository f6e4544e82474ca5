"""Several processes on one run folder: each writes files of its own, reads the others', and claims work by locks.

The kernel drops a lock with its process, so what a dead process had claimed is free again at once.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path

from leaf_diffusion.runs.files import RunFolderError, explained, open_plain, read_plain
from leaf_diffusion.runs.log import UnfitRecord, damaged, read_line
from leaf_diffusion.runs.records import Record
from leaf_diffusion.text.visible import visible

_FILE = re.compile(r"([a-z0-9_-]+)(?:\.(\d+))?\.jsonl")


def record_file(folder: Path, kind: str, slot: int) -> Path:
    """The records of a kind by the writer of a slot: records/<kind>.jsonl, records/<kind>.1.jsonl, ..."""
    return folder / "records" / (f"{kind}.{slot}.jsonl" if slot else f"{kind}.jsonl")


def record_files(folder: Path) -> list[tuple[str, int, Path]]:
    """(kind, slot, path) of every file of records, slots in order."""
    found = []
    for path in (folder / "records").glob("*.jsonl"):
        if match := _FILE.fullmatch(path.name):
            found.append((match[1], int(match[2] or 0), path))
    return sorted(found)


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


def take_slot(folder: Path, *, alone: bool) -> tuple[int, int]:
    """(slot, descriptor of its lock): the first number that no other writer has; 0 for a writer that is alone.

    The first writer notes the run's progress, so slot 0 must not be passed by because `status` holds it for a moment.
    """
    slot, waited = 0, 0.0
    while True:
        patience = 2.0 if alone else 0.0 if slot else 0.2
        path = folder / "records" / f".writer-{slot}"
        with explained(path, "locking"):
            fd = open_plain(path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return slot, fd
            except BlockingIOError:
                os.close(fd)
                if waited < patience:
                    time.sleep(0.05)
                    waited += 0.05
                    continue
                if alone:
                    raise
            except OSError:
                os.close(fd)
                raise
        slot += 1


class Tail:
    """The records that another process writes: whole lines, as they come.

    patience: seconds for which a line may look damaged, as one that another machine writes does where the file system
    brings its middle later than its end.
    """

    def __init__(self, path: Path, model: type[Record] = Record, patience: float = 0.0) -> None:
        self.path, self.model, self.patience = path, model, patience
        self.records: dict[str, Record] = {}
        self._read, self._lines = 0, 0
        self._stuck: float | None = None

    def read(self) -> int:
        """Read what is new; returns how many records. Raises DamagedRecords for a line that does not fit, naming it."""
        before = len(self.records)
        with explained(self.path, "reading"):
            try:
                data = read_plain(self.path, self._read)
            except FileNotFoundError:  # not begun yet
                return 0
        for line in data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]:
            try:
                found = read_line(line, self.model)
            except UnfitRecord as error:
                raise damaged(self.path, self._lines + 1, error) from error
            except (ValueError, RecursionError) as error:
                self._stuck = time.monotonic() if self._stuck is None else self._stuck
                if time.monotonic() - self._stuck >= self.patience:
                    raise damaged(self.path, self._lines + 1, error) from error
                break
            self.records.setdefault(found.id, found)
            self._read += len(line) + 1
            self._lines += 1
            self._stuck = None
        return len(self.records) - before


class Claims:
    """Exclusive claims to named pieces of work: byte ranges of one file, locked."""

    def __init__(self, folder: Path) -> None:
        path = folder / "records" / ".claims"
        with explained(path, "opening"):
            self.fd = open_plain(path, os.O_RDWR | os.O_CREAT)

    def take(self, name: str) -> bool:
        """False where another process holds it. A name that this process holds already is taken again."""
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(name))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def give(self, name: str) -> None:
        """Let a claim go."""
        fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, _place(name))

    def close(self) -> None:
        os.close(self.fd)


def _place(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
