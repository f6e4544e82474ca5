"""Webdataset shards."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from leaf_diffusion.text.decoding import LONGEST_TEXT, parse_json, utf8
from leaf_diffusion.text.readers.rows import TextRow, record_rows, text_row


def shard(path: Path, column: str | None) -> Iterator[TextRow]:
    """The members KEY.txt, or where there are none or a column is named KEY.json with the text in a column."""
    try:
        with tarfile.open(path) as archive:
            members = [member for member in archive.getmembers() if not Path(member.name).name.startswith(".")]
            _check_end(archive, path)
            has_texts = any(member.name.lower().endswith(".txt") for member in members)
            suffix = ".txt" if column is None and has_texts else ".json"
            wanted = [member for member in members if member.name.lower().endswith(suffix)]
            if not wanted and members:
                raise ValueError(
                    f"{path}: no member KEY.txt or KEY.json; there are {members[0].name[:80]!r} and others"
                )
            seen = set[str]()
            for member in wanted:
                where, key = f"{path}, {member.name!r}", member.name[: -len(suffix)]
                if key in seen:
                    raise ValueError(f"{where}: it stands there twice")
                seen.add(key)
                yield from _rows(_text(archive, member, where), suffix, column, where, key)
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:  # it may be compressed
        raise ValueError(f"{path} is no tar archive that can be read: {error}") from error


def _rows(text: str, suffix: str, column: str | None, where: str, key: str) -> Iterator[TextRow]:
    if suffix == ".txt":
        yield text_row(text, where, image=key)
    else:
        yield from record_rows(parse_json(text, where), column, where, key)


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> str:
    if not member.isfile() or (content := archive.extractfile(member)) is None:
        raise ValueError(f"{where}: a link or a folder, no file")
    if member.size > LONGEST_TEXT:
        raise ValueError(f"{where}: {member.size:,} bytes are no caption")
    return utf8(content.read(), where)


def _check_end(archive: tarfile.TarFile, path: Path) -> None:
    """ValueError where an archive was cut between two members, or has others behind its end."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if not block:
        raise ValueError(f"{path} is no whole tar archive: its end is missing")
    while block:
        if block.strip(b"\0"):
            raise ValueError(f"{path}: more stands behind the end of the archive; are these several in one?")
        block = archive.fileobj.read(1 << 20)
