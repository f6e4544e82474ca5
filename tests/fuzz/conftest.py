"""How files are spoiled, and what a reader may do with one: read it, or say which file is wrong and why."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

# the same examples every time, so that a red run can be repeated; with FUZZ=20 in the environment twenty times as many,
# other ones each time, and what fails is made small
FUZZ = int(os.environ.get("FUZZ", "0"))
SECONDS = 20
LONGEST_MESSAGE = 5_000
Read = Callable[[], object]
NASTY = [
    b"\0", b"\0" * 100, b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xc3", b"\r", b"\n", b"\r\n", b'"', b"'", b"\\",
    b'"\\ud800"', b"9" * 5000, b"-1", b"0", b"1e999", b"NaN", b"null", b"true", b"[]", b"{}", b'""', b"0.5",
    b"[" * 50_000, b'{"caption":[' * 400, b"\xe2\x80\xae", b"\t", b",", b": ", b"- ", b"&a [*a, *a]", b"2020-99-99",
    b"x" * 200_000,
]  # fmt: skip
WRONG: list[object] = [
    None, True, -1, 0, 1, 3, 10**9, 10**18, 10**30, -0.5, 1e300, float("nan"), "", "x", "\0", "\ud800", "../../x", "9" * 99, [], [[]],
    [1], ["x"], {}, {"x": 1}, [None], {"": ""},
]  # fmt: skip


@st.composite
def _spoiled(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` after one to three accidents."""
    for _ in range(draw(st.integers(1, 3))):
        at, far = draw(st.integers(0, len(content))), draw(st.integers(1, 9))
        kind = draw(st.sampled_from(("cut", "flip", "put", "put", "bytes", "lose", "line", "no line", "value")))
        if kind == "cut":
            content = content[:at]
        elif kind == "flip" and content:
            at = min(at, len(content) - 1)
            content = content[:at] + bytes([content[at] ^ (1 << far % 8)]) + content[at + 1 :]
        elif kind == "put":
            content = content[:at] + draw(st.sampled_from(NASTY)) + content[at:]
        elif kind == "bytes":
            content = content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at + far :]
        elif kind == "lose":
            content = content[:at] + content[at + far :]
        elif kind == "value":  # a number, a text or a word of JSON, CSV, YAML
            places = list(re.finditer(rb'"[^"]*"|[\w.-]+', content))
            if places:
                match = places[at % len(places)]
                content = content[: match.start()] + draw(st.sampled_from(NASTY)) + content[match.end() :]
        else:
            lines = content.splitlines(keepends=True) or [b""]
            lines[at % len(lines)] *= 2 if kind == "line" else 0
            content = b"".join(lines)
    return content


@st.composite
def _spoiled_json(draw: st.DrawFn, value: Any) -> str:
    """JSON whose syntax is right and whose values are not: one or two replaced, lost or doubled."""
    box = [copy.deepcopy(value)]
    for _ in range(draw(st.integers(1, 2))):
        places: list[tuple[Any, Any]] = []
        waiting = [box]
        while waiting:
            one = waiting.pop()
            keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else []
            places += [(one, key) for key in keys]
            waiting += [one[key] for key in keys]
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(("replace", "replace", "replace", "lose", "more")))
        if kind == "replace":
            holder[key] = copy.deepcopy(draw(st.sampled_from(WRONG)))
        elif kind == "lose":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(("x", "", "\ud800", "caption", "id")))] = copy.deepcopy(holder[key])
        else:
            holder.append(copy.deepcopy(holder[key]))
    return json.dumps(box[0] if box else None)


class Fuzz:
    """Spoils a file many times; each time `read` succeeds, or raises a ValueError or OSError that names it, in time."""

    def bytes(self, path: Path, read: Read, examples: int, named: Path | None = None) -> None:
        """Accidents to the bytes of the right file at `path`."""
        self.run(path, read, _spoiled(path.read_bytes()), examples, named)

    def json(self, path: Path, read: Read, examples: int, named: Path | None = None) -> None:
        """Wrong values in the JSON, or the JSONL, at `path`."""
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            rows = st.tuples(*(st.just(line) | _spoiled_json(json.loads(line)) for line in text.splitlines()))
            self.run(
                path, read, rows.map(lambda lines: "".join(f"{line}\n" for line in lines).encode()), examples, named
            )
        else:
            self.run(path, read, _spoiled_json(json.loads(text)).map(str.encode), examples, named)

    def run(
        self, path: Path, read: Read, contents: st.SearchStrategy[Any], examples: int, named: Path | None = None
    ) -> None:
        """`named`: what the message has to name, where that is not `path`."""
        right = path.read_bytes()
        read()  # what is right is read

        @settings(
            max_examples=examples * max(FUZZ, 1),
            derandomize=not FUZZ,
            phases=[Phase.generate, Phase.shrink] if FUZZ else [Phase.generate],
            report_multiple_bugs=False,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(contents)
        def once(content: bytes) -> None:
            path.write_bytes(content)
            reads_or_refuses(read, named or path)

        try:
            once()
        finally:
            path.write_bytes(right)


def reads_or_refuses(read: Read, path: Path) -> None:
    """Fails where `read` raises what is not ours, does not name `path`, or takes too long."""

    def hung(*_: object) -> None:
        raise AssertionError(f"the reader hung for {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        read()
    except (ValueError, OSError) as error:
        if str(path) not in str(error):
            raise AssertionError(f"{type(error).__name__} does not name {path.name}") from error
        if len(str(error)) > LONGEST_MESSAGE:
            raise AssertionError(f"nobody reads a message of {len(str(error)):,} characters") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def fuzz() -> Fuzz:
    return Fuzz()
