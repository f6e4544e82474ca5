"""One caption and what is known of it, and how it is found in a record, whatever the layout."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from leaf_diffusion.text.decoding import parse_json, shows, whole_text

COLUMNS = ("prompt", "caption", "text", "raw", "sentence", "captions", "sentences", "comment")
"""Where the text stands, in this order, whatever the case of the letters, unless a column is named."""
LABELS = ("label_text", "label", "labels", "class", "category")
"""Where the class stands; its name before its number."""
IMAGES = ("image", "file_name", "filename", "image_name", "image_path", "image_id", "cocoid", "img_id", "imgid")
"""What tells which image a caption belongs to: names of files before numbers."""
N_NAMES = 5
"""How many of `IMAGES` are names of files."""
LONGEST_PROMPT = 1 << 15
"""Characters of a text; eight thousand tokens of a language model are about as long."""
STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
BETWEEN = re.compile(r"\s*,?\s*")


@dataclass(frozen=True)
class TextRow:
    """One caption: where it stands, which image it belongs to, the split, the class (None each: not said)."""

    text: str
    where: str
    image: str | None = None
    split: str | None = None
    label: str | None = None


def text_row(text: str, where: str, **known: str | None) -> TextRow:
    """A row of a stripped text, blank where nothing of it shows. ValueError for one that is too long for a prompt or no
    whole text."""
    if len(text) > LONGEST_PROMPT:
        raise ValueError(f"{where}: {len(text):,} characters are no caption or prompt; {LONGEST_PROMPT:,} at most")
    stripped = whole_text(text, where).strip().removeprefix("\ufeff").strip()
    return TextRow(stripped if shows(stripped) else "", where, **known)


def text_column(names: Sequence[str], column: str | None, where: str) -> str:
    """The name of the column of texts. ValueError that lists what there is."""
    if (found := find_column(names, COLUMNS if column is None else (column,))) is not None:
        return found
    listed = ", ".join([repr(name[:40])[1:-1] for name in names[:12]] + ["..."] * (len(names) > 12)) or "nothing"
    if column is not None:
        raise ValueError(f"{where}: no column {column!r}; there are: {listed}")
    raise ValueError(f"{where}: none of the columns {', '.join(COLUMNS)}; there are: {listed}. Name the column")


def find_column(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first of `wanted` among `names`, as it is written there; the case of the letters is looked at last."""
    known = {name.lower(): name for name in reversed(names)}
    return next((name if name in names else known[name.lower()] for name in wanted if name.lower() in known), None)


def known_columns(names: Sequence[str]) -> list[str]:
    """The columns beside the text that a row is made of."""
    wanted = {*IMAGES, *LABELS, "split"}
    return [name for name in names if name.lower() in wanted]


def record_rows(record: object, column: str | None, where: str, image: str | None = None) -> Iterator[TextRow]:
    """The rows of a text or an object; a list of captions, also one that is written as text, gives several."""
    if isinstance(record, str):
        yield text_row(record, where, image=image)
        return
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a text or an object, got {type(record).__name__}")
    value = record[text_column(list(record), column, where)]
    lower: dict[str, object] = {str(name).lower(): each for name, each in reversed(record.items())}
    image = image if image is not None else _image(lower, where)
    split = lower.get("split")
    split = split.strip() if isinstance(split, str) else None
    label = next((found for name in LABELS if (found := plain(lower.get(name))) is not None), None)
    for one in value if isinstance(value, list) else written_list(value, where) if isinstance(value, str) else [value]:
        if isinstance(one, dict):
            yield from (replace(row, split=row.split or split) for row in record_rows(one, None, where, image))
        elif isinstance(one, str):
            yield text_row(one, where, image=image, split=split, label=label)
        else:
            raise ValueError(f"{where}: expected a text, got {type(one).__name__}")


def plain(value: object) -> str | None:
    """A text or a whole number as text; None for what is neither or blank."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return (str(value).strip() or None) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _image(record: Mapping[str, object], where: str) -> str | None:
    for name in IMAGES:
        value = record.get(name)
        if isinstance(value, dict):  # an image of Hugging Face datasets
            value = value.get("path")
        if (found := plain(value)) is not None:
            return whole_text(found, where)
    return None


def written_list(text: str, where: str) -> list[str]:
    """["a", "b"] of a list of texts that is written as text (JSON, Python's or NumPy's), else [text].

    ValueError for what begins and ends as such a list and is none.
    """
    inner = text.strip()
    if not (inner[:1] == "[" and inner[-1:] == "]" and inner[1:-1].strip()):
        return [text]
    if inner[1:].lstrip()[0] not in "'\"[{":
        return [text]  # a text in brackets
    try:
        value = parse_json(inner, where)
    except ValueError:
        value = _strings(inner)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{where}: it looks like a list of texts and is none that can be read: {inner[:60]!r}")
    return value


def _strings(text: str) -> list[str] | None:
    """The strings of Python's or NumPy's list; each is evaluated alone, as Python would join two that stand together."""
    found, at, end = list[str](), 1, len(text) - 1
    while at < end:
        at = BETWEEN.match(text, at).end()  # type: ignore[union-attr]
        if at >= end:
            break
        if (match := STRING.match(text, at, end)) is None:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # an escape that is none
                found.append(ast.literal_eval(match.group()))
        except (SyntaxError, ValueError, Warning):
            return None
        at = match.end()
    return found


class OneImageEach:
    """Refuses an id that stands for two images, and a name that stands for two ids."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def check(self, number: str | None, name: str | None, where: str) -> None:
        """ValueError where `number` was seen with another name."""
        if number is not None and name is not None and (before := self._names.setdefault(number, name)) != name:
            raise ValueError(
                f"{where}: the id {number[:80]!r} stands for two images, {before[:80]!r} and {name[:80]!r}"
            )

    def check_record(self, record: object, where: str) -> None:
        """`check` of each id of a record against the name of its file."""
        if not isinstance(record, dict):
            return
        lower = {str(key).lower(): value for key, value in record.items()}
        name = next((found for key in IMAGES[:N_NAMES] if (found := plain(lower.get(key))) is not None), None)
        for key in IMAGES[N_NAMES:]:
            if (number := plain(lower.get(key))) is not None:
                self.check(f"{key} {number}", name, where)
