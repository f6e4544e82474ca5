"""Untrusted bytes to text and JSON: UTF-8 of bounded lines, or an error that says where it is none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

LONGEST_TEXT = 1 << 20
"""Bytes of a line, or of a member of an archive: a file that has none so short holds no captions."""


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


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
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


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, UTF-8, one at a time; a byte-order mark is dropped. ValueError that says file and line."""
    with path.open("rb") as file:
        for number in count(1):
            line, where = file.readline(LONGEST_TEXT + 1), f"{path}, line {number}"
            if not line:
                return
            if len(line) > LONGEST_TEXT:
                raise ValueError(f"{where}: more than {LONGEST_TEXT:,} bytes are no caption; is it a text file?")
            yield number, utf8(line, where, "utf-8-sig" if number == 1 else "utf-8")


def utf8(content: bytes, where: str, encoding: str = "utf-8") -> str:
    """ValueError that begins with `where` for what is no UTF-8 text."""
    if b"\0" in content:
        raise ValueError(f"{where}: a NUL byte, so it is UTF-16 or no text at all; convert it to UTF-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from None
