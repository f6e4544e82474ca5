"""Files that appear whole or not at all, and errors that say what to do."""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

PROBE_BYTES = 1 << 20
_HINTS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; choose another output folder",
    errno.EACCES: "this user may not write there; choose another output folder or change its permissions",
    errno.EPERM: "this user may not write there; choose another output folder or change its permissions",
    errno.ENOTDIR: "a part of the path is a file; choose another output folder",
    errno.ELOOP: "it is a link, and links in a run folder are not followed; put the file itself there",
    errno.EEXIST: "a file stands where a folder is needed; choose another output folder",
}


class RunFolderError(OSError):
    """A run folder cannot be used; the message says why and what to do."""


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError, and safetensors' words for one, into a RunFolderError that names the path and the remedy (errno
    is kept)."""
    try:
        yield
    except RunFolderError:
        raise
    except (OSError, SafetensorError) as error:
        told = re.search(r"os error (\d+)", str(error))
        if not isinstance(error, OSError) and not told:
            raise
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        hint = _HINTS.get(number or 0, os.strerror(number) if number else str(error))
        full = number in (errno.ENOSPC, errno.EDQUOT)
        after = ", then run the same command again: what was recorded so far is safe" if full else ""
        raised = RunFolderError(f"{doing} {path} failed: {hint}{after}")
        raised.errno = number
        raise raised from error


def write_all(fd: int, data: bytes) -> None:
    """os.write until nothing is left (a nearly full disk takes only a part). Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def open_plain(path: Path, flags: int = os.O_RDONLY) -> int:
    """os.open of a regular file of a run folder, which others may have made: no link is followed, no pipe or device
    opened. Raises FileNotFoundError, else RunFolderError."""
    with suppress(FileNotFoundError):
        _check_plain(path, os.lstat(path).st_mode)
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    try:
        _check_plain(path, os.fstat(fd).st_mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_plain(path: Path, start: int = 0) -> bytes:
    """The bytes of a regular file from `start` on. Errors as of `open_plain`."""
    with open(open_plain(path), "rb") as file:
        file.seek(start)
        return file.read()


def check_folder(path: Path) -> None:
    """Raises RunFolderError where a folder inside a run folder is a link or no folder; one that is absent is fine."""
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise RunFolderError(
                f"{path} is a link or no folder, and links in a run folder are not followed; remove it"
            )


def _check_plain(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        what = "a link" if stat.S_ISLNK(mode) else "no regular file"
        raise RunFolderError(f"{path} is {what}; a run folder holds regular files only: remove it, or put a copy there")


def atomic_write(path: Path, data: bytes, *, sync_name: bool = True) -> None:
    """Write beside `path`, fsync, rename over it. A reader sees the old file or the new one. Raises RunFolderError.

    sync_name: also force the new name onto the disk; without it a power cut may undo the write, never halve it.
    """
    with explained(path, "writing"):
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            try:
                write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
        if sync_name:
            sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Write a line behind the file's others, and to the disk. Raises RunFolderError."""
    with explained(path, "writing"):
        fd = open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            write_all(fd, f"{line}\n".encode())
            os.fsync(fd)
        finally:
            os.close(fd)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut; file systems without that ability are left alone."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def probe(folder: Path) -> None:
    """Really write one megabyte and remove it: permission bits lie (root, network disks). Raises RunFolderError."""
    path = folder / f".probe-{os.getpid()}.tmp"
    try:
        with explained(folder, "writing into"):
            fd = open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                write_all(fd, b"\0" * PROBE_BYTES)
                os.fsync(fd)
            finally:
                os.close(fd)
    finally:
        with suppress(OSError):
            path.unlink()
