"""Untrusted bytes to text and JSON: UTF-8 of bounded lines, or an error that says where it is none."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

LONGEST_TEXT = 1 << 20
"""Bytes of a line, or of a member of an archive: a file that has none so short holds no captions."""
LINE_END = re.compile(rb"\r\n|\r|\n")
MARKS = {BOM_UTF32_LE: "UTF-32", BOM_UTF32_BE: "UTF-32", BOM_UTF16_LE: "UTF-16", BOM_UTF16_BE: "UTF-16"}
"""Byte-order marks, the longer ones first: UTF-32's begins as UTF-16's does."""
FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe0e\ufe0f\uffa0")
"""Letters and marks without a shape, which Unicode does not call formats."""
GZIP = b"\x1f\x8b"
COMPRESSED = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip (or Excel's)"}


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. ValueError that begins with `where`, also for a name that stands twice in one object."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no JSON ({error.msg})") from error
    except ValueError as error:  # a name that stands twice, a number of thousands of digits
        raise ValueError(f"{where}: no JSON that can be read ({error})") from error
    except RecursionError:
        raise ValueError(f"{where}: no JSON that can be read (nested too deeply)") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
        raise ValueError(f"{name[:80]!r} stands twice in one object")
    return found


def whole_text(text: str, where: str) -> str:
    """`text` as it is. ValueError for half a surrogate pair: JSON can spell it, no encoder and no file takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: half a surrogate pair at character {error.start}; write it as UTF-8") from None
    return text


def shows(text: str) -> bool:
    """Whether any character of a text is seen: white space, controls, zero-width and filling characters are not."""
    return any(not c.isspace() and c not in FILLERS and unicodedata.category(c) not in ("Cc", "Cf") for c in text)


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, of a gzipped one decompressed, whatever its name. ValueError that names a damaged one."""
    with path.open("rb") as raw:
        packed = raw.read(len(GZIP)) == GZIP
        raw.seek(0)
        if not packed:
            yield raw
            return
        try:
            with gzip.GzipFile(fileobj=raw) as file:
                yield file  # type: ignore[misc]
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: its compression (gzip) is damaged: {error}") from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Numbered lines without their ends (\n, \r\n or \r), UTF-8, one at a time; a byte-order mark before any is
    dropped. ValueError that says file and line."""
    numbers = count(1)
    with open_bytes(path) as file:
        rest = b""
        while chunk := file.read(LONGEST_TEXT):
            rest += chunk
            whole = rest.removesuffix(b"\r")  # half of a line end, perhaps
            *lines, last = LINE_END.split(whole)
            rest = last + rest[len(whole) :]
            for line in lines:
                yield _line(line, path, next(numbers))
            if len(last) > LONGEST_TEXT:
                _line(last, path, next(numbers))
        if rest:
            yield _line(rest.removesuffix(b"\r"), path, next(numbers))


def _line(line: bytes, path: Path, number: int) -> tuple[int, str]:
    where = f"{path}, line {number}"
    if len(line) > LONGEST_TEXT:
        raise ValueError(f"{where}: more than {LONGEST_TEXT:,} bytes are no caption; is it a text file?")
    return number, utf8(line, where)


def utf8(content: bytes, where: str) -> str:
    """The text without a byte-order mark before it. ValueError that begins with `where` for what is no UTF-8 text."""
    for mark, name in MARKS.items():
        if content.startswith(mark):
            raise ValueError(f"{where}: not UTF-8 but {name}; convert it: iconv -f {name} -t UTF-8")
    for mark, name in COMPRESSED.items():
        if content.startswith(mark) and not content.isascii():
            raise ValueError(f"{where}: not UTF-8 but compressed, {name}; unpack it")
    if b"\0" in content:
        raise ValueError(f"{where}: a NUL byte, so it is UTF-16 or no text at all; convert it to UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from None
