"""Captions and prompts from whatever file holds them: the one door.

Text (one a line), JSONL, CSV and TSV (PartiPrompts), Parquet, the JSON of COCO captions and of the Karpathy split,
Flickr8k and 30k as they circulate, webdataset tars, and `dataset:NAME` for Hugging Face `datasets`. The content decides
which it is, the suffix where that leaves it open. Text is UTF-8, gzipped or not. Fields beside the text are left alone;
what would lose some of a text is refused: a cell without a column, a quote left open, a name that stands twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from glob import glob
from itertools import product
from pathlib import Path

from leaf_diffusion.text.decoding import LONGEST_TEXT, open_bytes, parse_json
from leaf_diffusion.text.readers.columnar import dataset, parquet
from leaf_diffusion.text.readers.documents import document
from leaf_diffusion.text.readers.lines import jsonl, plain_lines, token_file
from leaf_diffusion.text.readers.rows import COLUMNS, LABELS, TextRow
from leaf_diffusion.text.readers.tables import is_header, table
from leaf_diffusion.text.readers.tars import shard

__all__ = ["COLUMNS", "LABELS", "TextRow", "first_of_each_image", "read_texts"]

Reader = Callable[[Path, str | None], Iterator[TextRow]]
MOST_FILES = 100_000
BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


def read_texts(source: str | Path, *, column: str | None = None, split: str | None = None) -> list[TextRow]:
    """All texts of `source`, stripped, in order, blank ones too.

    `source`: a file, a pattern of files ("shards/*.tar", "shards/{00000..00012}.tar"), or "dataset:NAME" /
    "dataset:FOLDER" (`datasets.load_dataset` / `load_from_disk`). `column`: where the text stands; default: the first of
    `COLUMNS` that is there. `split`: keep this split alone (in a `datasets` name: which to load, "train" unless given).

    Raises FileNotFoundError, or ValueError that says file, line and what to do, for files that cannot be read.
    """
    name = str(source)
    if name.startswith("dataset:"):
        return list(dataset(name.removeprefix("dataset:"), column, split))
    paths = find_files(name)
    rows: list[TextRow] = []
    for path in paths:
        reader = choose_reader(path)
        for row in reader(path, column):
            if reader is shard and len(paths) > 1:  # the keys of two shards are not the same images
                row = replace(row, image=f"{path.name}/{row.image}")
            rows.append(row)
    if split is None:
        return rows
    if rows and all(row.split is None for row in rows):
        raise ValueError(f"{source}: it tells no splits, so there is no split {split!r}; leave --split out")
    return [row for row in rows if row.split == split]


def first_of_each_image(rows: Sequence[TextRow]) -> list[TextRow]:
    """The first caption of each image, as the paper's protocols take them; rows without an image all stay."""
    seen: set[str] = set()
    kept = []
    for row in rows:
        if row.image is None or row.image not in seen:
            kept.append(row)
            seen |= {row.image} if row.image is not None else set()
    return kept


def find_files(source: str) -> list[Path]:
    """The file of that name, else the files that fit a pattern, each once. FileNotFoundError for none."""
    name = os.path.expanduser(source)
    if Path(name).is_file():
        return [Path(name)]
    if Path(name).is_dir():
        raise FileNotFoundError(f"{source} is a folder; name the files in it, such as {Path(source) / '*.parquet'}")
    found: dict[Path, None] = {}
    for each in _expanded(name):
        path = Path(each)
        if not path.is_file() and any(character in each for character in "*?["):
            fit = [one for one in sorted(map(Path, glob(each, recursive=True))) if one.is_file()]
            if not fit:
                raise FileNotFoundError(f"no file fits {each}")
            found |= dict.fromkeys(fit)
        elif path.is_file():
            found[path] = None
        else:
            raise FileNotFoundError(f"no such file: {each}")
    return list(found)


def _expanded(name: str) -> Iterator[str]:
    """The names of a pattern with ranges {00000..00012} and lists {a,b}, as shells and webdataset expand them."""
    parts: list[list[str]] = []
    at, total = 0, 1
    for match in BRACES.finditer(name):
        first, last, listed = match.groups()
        if listed is not None:
            choices = listed.split(",")
        else:
            low, high, width = int(first[:9]), int(last[:9]), max(len(first), len(last))
            if width > 9 or high < low or high - low >= MOST_FILES:
                raise ValueError(f"{name}: {match.group()} is no range of files")
            choices = [f"{i:0{width if first[0] == '0' else 0}d}" for i in range(low, high + 1)]
        total *= len(choices)
        parts += [[name[at : match.start()]], choices]
        at = match.end()
    if total > MOST_FILES:
        raise ValueError(f"{name}: {total:,} files are too many")
    yield from map("".join, product(*parts, [name[at:]]))


def choose_reader(path: Path) -> Reader:
    """The reader for what a file holds."""
    name = path.name.lower()
    if name.endswith((".tar", ".tgz", ".tar.gz")):
        return shard
    suffix = Path(name.removesuffix(".gz")).suffix
    with open_bytes(path) as file:
        head = file.read(LONGEST_TEXT + 1)
    if suffix == ".parquet" or head.startswith(b"PAR1"):
        return parquet
    if head[257:262] == b"ustar":
        return shard
    text = head.decode("utf-8-sig", errors="replace")
    lines = [line.removeprefix("\ufeff").strip() for line in re.split(r"[\r\n]+", text) if line.strip("\ufeff\t ")]
    first = lines[0] if lines else ""
    if suffix == ".token" or re.match(r"[^\t]+#\d+\t", first):
        return token_file
    if suffix in (".json", ".jsonl", ".ndjson"):
        by_line = len(lines) > 1 and _is_json(first) if suffix == ".json" else first not in ("[", "{")
        return jsonl if by_line else document
    if first in ("[", "{", "[{"):
        return document
    if first.startswith("{") and _is_json(first):
        return jsonl
    own = {".csv": ",", ".tsv": "\t"}.get(suffix)
    return table(own or ",") if own is not None or is_header(first) else plain_lines


def _is_json(line: str) -> bool:
    try:
        parse_json(line, "")
    except ValueError:
        return False
    return True
