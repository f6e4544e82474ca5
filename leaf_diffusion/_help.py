"""tyro's boxes of text as this project prints them: help in groups, errors as one sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

FIRST = "first"
"""The group of what a beginner needs."""


def _boxes(text: str) -> list[tuple[str, list[list[str]]]]:
    """Title and parts (lines between the rules) of each box; what stands before the first box is a box without title."""
    boxes: list[tuple[str, list[list[str]]]] = [("", [[]])]
    for line in text.splitlines():
        if re.fullmatch(r" *[-─]{5,} *", line):  # under a title, or between the parts of a box
            if line.startswith("  "):
                boxes[-1][1].append([])
        elif re.match(r" [^ ]", line):
            boxes.append((line.strip(), [[]]))
        else:
            boxes[-1][1][-1].append(line.rstrip())
    return boxes


def grouped(text: str, groups: Mapping[str, str]) -> str:
    """The help with its options in `groups` (flag without dashes -> heading), those of "first" first."""
    if "--help" not in text:
        return text.rstrip()
    (_, head), *boxes = _boxes(text)
    made: dict[str, list[str]] = {FIRST: []}
    for title, parts in boxes:
        name = title.removesuffix(" options")
        if name in groups and len(parts) > 1:  # something chosen by name: its description is the option itself
            made.setdefault(groups[name], []).extend(
                [f"  --{name} NAME", *(f"      {line}" for line in _text(parts[0]))]
            )
        lines = made.setdefault(title, [])
        for line in parts[-1]:
            flag = re.match(r"  (?:-\w, )?--([\w-]+)(\.?)", line)
            if flag is not None:
                lines = made.setdefault("options" if flag[1] == "help" else groups.get(flag[1], title), [])
            if line.strip():
                lines.append(line)
    order = sorted(made, key=lambda name: (name != FIRST, name == "options"))
    said = [
        f"{'the first you need' if name == FIRST else name}:\n" + "\n".join(made[name]) for name in order if made[name]
    ]
    return "\n\n".join(["\n".join(head[0]).strip(), *said])


def _text(lines: Sequence[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip()]


def plain_error(text: str, cause: BaseException | None, known: Sequence[str]) -> str:
    """One sentence of the box in which tyro tells an error; `cause` is the options' own ValueError, if there is one."""
    parts = [part for _, parts in _boxes(text) for part in parts if _text(part)]
    said = " ".join(_text(parts[0])) if parts else "the options cannot be read"
    if cause is not None and re.match(r"Error parsing [^-]", said):  # raised by the options themselves
        return str(cause)
    said = re.sub(r"^Missing from [^:]*:", "missing:", re.sub(r"^Error parsing ", "", said))
    said = re.sub(
        r": no type matching (?:\{None\}\|)?(\S+) could be instantiated from \[(.*?)\]\. Got errors.*",
        r" takes \1, not \2",
        said,
    )
    word = re.search(r"Unrecognized options: -*([\w.-]+)", said)
    choice = re.search(r"invalid choice '([^']*)'.*?\(([^)]*)\)", said)
    if word is not None:
        close = difflib.get_close_matches(word[1], known, n=1) or re.findall(
            r"--([\w.-]+)", " ".join(line for part in parts[1:2] for line in part)
        )
        said = said[:1].lower() + said[1:] + (f"; did you mean --{close[0]}?" if close else "")
    elif choice is not None:
        close = difflib.get_close_matches(choice[1], re.findall(r"'([^']*)'", choice[2]), n=1)
        said = said.rstrip(".") + (f"; did you mean {close[0]!r}?" if close else "")
    return said
