"""Captions and prompts from whatever file holds them.

Text (one a line), JSONL, CSV and TSV (PartiPrompts), Parquet, the JSON of COCO captions and of the Karpathy split, the
token file of Flickr30k, webdataset tars, and `dataset:NAME` for Hugging Face `datasets`. Text is UTF-8. Fields beside
the text are left alone; what would lose some of a text is refused: a cell without a column, a name that stands twice.
"""

from __future__ import annotations

import csv
import lzma
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any

from leaf_diffusion.text.decoding import LONGEST_TEXT, parse_json, text_lines, utf8, whole_text

COLUMNS = ("prompt", "caption", "text", "raw", "sentence", "captions", "sentences")
"""Where the text stands, in this order, whatever the case of the letters, unless a column is named."""
LABELS = ("label", "labels", "label_text", "class", "category")
"""Where the class stands."""
LONGEST_JSON = 1 << 30
"""Bytes of a JSON file, which is read as a whole; COCO's are 0.1 GB."""


@dataclass(frozen=True)
class TextRow:
    """One caption: where it stands, which image it belongs to, the split, the class (None each: not said)."""

    text: str
    where: str
    image: str | None = None
    split: str | None = None
    label: str | None = None


def read_texts(source: str | Path, *, column: str | None = None, split: str | None = None) -> list[TextRow]:
    """All texts of `source`, stripped, in order, blank ones too.

    `source`: a file, a glob pattern, or "dataset:NAME" / "dataset:FOLDER" (`datasets.load_dataset` / `load_from_disk`).
    `column`: where the text stands; default: the first of `COLUMNS` that is there. `split`: keep this split alone (in a
    `datasets` name: which to load, "train" unless given).

    Raises FileNotFoundError, or ValueError that says file, line and what to do, for files that cannot be read.
    """
    name = str(source)
    if name.startswith("dataset:"):
        return list(_dataset(name.removeprefix("dataset:"), column, split))
    paths = sorted(map(Path, glob(name))) if any(c in name for c in "*?[") else [Path(source)]
    if not paths:
        raise FileNotFoundError(f"no file fits {name}")
    rows: list[TextRow] = []
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        rows += _READERS.get(path.suffix.lower(), _lines)(path, column)
    return [row for row in rows if row.split == split] if split is not None else rows


def first_of_each_image(rows: Sequence[TextRow]) -> list[TextRow]:
    """The first caption of each image, as the paper's protocols take them; rows without an image all stay."""
    seen: set[str] = set()
    kept = []
    for row in rows:
        if row.image is None or row.image not in seen:
            kept.append(row)
            seen |= {row.image} if row.image is not None else set()
    return kept


def _lines(path: Path, column: str | None) -> Iterator[TextRow]:
    for number, line in text_lines(path):
        yield TextRow(line.strip(), f"{path}, line {number}")


def _token_file(path: Path, column: str | None) -> Iterator[TextRow]:
    """Flickr30k: "1000092795.jpg#0<tab>caption"."""
    for number, line in text_lines(path):
        image, tab, text = line.partition("\t")
        if not tab or "#" not in image:
            raise ValueError(f"{path}, line {number}: expected IMAGE#NUMBER, a tab and the caption")
        yield TextRow(text.strip(), f"{path}, line {number}", image.rpartition("#")[0])


def _jsonl(path: Path, column: str | None) -> Iterator[TextRow]:
    for number, line in text_lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        yield from _record(parse_json(line, where), column, where)


def _json(path: Path, column: str | None) -> Iterator[TextRow]:
    if (size := path.stat().st_size) > LONGEST_JSON:
        raise ValueError(f"{path}: {size:,} bytes are too many for one JSON value; write JSONL, an object a line")
    content = parse_json(utf8(path.read_bytes(), str(path), "utf-8-sig"), str(path))
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):  # COCO, in the order of its images
        images = content.get("images", [])
        if not isinstance(images, list) or not all(isinstance(i, dict) for i in images):
            raise ValueError(f"{path}: expected COCO's images to be a list of objects")
        names = {str(i.get("id")): str(i.get("file_name", i.get("id"))) for i in images}
        for i, one in enumerate(content["annotations"]):
            where = f"{path}, annotation {i}"
            image = str(one["image_id"]) if isinstance(one, dict) and "image_id" in one else None
            yield from _record(one, column or "caption", where, None if image is None else names.get(image, image))
        return
    records = content.get("images") if isinstance(content, dict) else content  # the Karpathy split, or a plain list
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a list, COCO captions (annotations) or a Karpathy split (images)")
    for i, one in enumerate(records):
        yield from _record(one, column, f"{path}, item {i}")


def _table(delimiter: str) -> Callable[[Path, str | None], Iterator[TextRow]]:
    def read(path: Path, column: str | None) -> Iterator[TextRow]:
        lines = (line for _, line in text_lines(path))
        first = next(lines, "")
        # Flickr30k's results.csv has bars between its columns
        mark = "|" if delimiter == "," and "|" in first and "," not in first else delimiter
        reader = csv.reader(chain([first], lines), delimiter=mark, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if twice := [name for name, n in Counter(filter(None, header)).items() if n > 1]:
                raise ValueError(f"{path}, line 1: the column {twice[0][:80]!r} stands there twice")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                cells = [cell.strip() for cell in row]
                if any(cells[len(header) :]):
                    raise ValueError(
                        f"{where}: {len(row)} cells under {len(header)} columns; quote a text that holds {mark!r}"
                    )
                if row:
                    yield from _record(dict(zip(header, cells, strict=False)), column, where)
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: no CSV ({error}); is a quote left open?") from error

    return read


def _parquet(path: Path, column: str | None) -> Iterator[TextRow]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('Parquet files need pyarrow: pip install "leaf_diffusion[data]"') from error
    try:
        file, number = ParquetFile(path), 0
        names = list(file.schema_arrow.names)
        wanted = _column(names, column, str(path))
        extra = [name for name in ("image_id", "image", "file_name", "split", *LABELS) if name in names]
        for batch in file.iter_batches(columns=[wanted, *extra]):
            for record in batch.to_pylist():
                yield from _record(record, wanted, f"{path}, row {number}")
                number += 1
    except (ArrowException, OSError, UnicodeDecodeError) as error:  # of a broken page as of a broken header
        raise ValueError(f"{path} is no Parquet file that can be read: {error}") from error


def _tar(path: Path, column: str | None) -> Iterator[TextRow]:
    """A webdataset shard: members KEY.txt, or where there are none KEY.json with the text in a column."""
    try:
        with tarfile.open(path) as archive:
            suffix = ".txt" if column is None and any(n.endswith(".txt") for n in archive.getnames()) else ".json"
            for member in archive.getmembers():
                if not member.isfile() or not member.name.endswith(suffix):
                    continue
                where, key = f"{path}, {member.name!r}", member.name.removesuffix(suffix)
                if member.size > LONGEST_TEXT:
                    raise ValueError(f"{where}: {member.size:,} bytes are no caption")
                content = archive.extractfile(member)
                assert content is not None
                text = utf8(content.read(), where)
                if suffix == ".txt":
                    yield TextRow(text.strip(), where, key)
                else:
                    yield from _record(parse_json(text, where), column, where, key)
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:  # it may be compressed
        raise ValueError(f"{path} is no tar archive that can be read: {error}") from error


def _dataset(name: str, column: str | None, split: str | None) -> Iterator[TextRow]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'dataset:... needs the package datasets: pip install "leaf_diffusion[data]"'
        ) from error
    try:
        if Path(name).is_dir():
            loaded: Any = datasets.load_from_disk(name)
            loaded = loaded[split or "train"] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            loaded = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError, KeyError, ConnectionError) as error:
        raise FileNotFoundError(f"dataset:{name} (split {split or 'train'!r}) could not be loaded: {error}") from error
    wanted = _column(list(loaded.column_names), column, f"dataset:{name}")
    kept = [label for label in LABELS if label in loaded.column_names and label != wanted][:1]
    names = {label: getattr(loaded.features[label], "names", None) or [] for label in kept}  # of a ClassLabel
    for i, record in enumerate(loaded.select_columns([wanted, *kept])):
        for label in kept:
            if isinstance(record[label], int) and 0 <= record[label] < len(names[label]):
                record[label] = names[label][record[label]]
        yield from _record(record, wanted, f"dataset:{name}, row {i}")


def _record(record: Any, column: str | None, where: str, image: str | None = None) -> Iterator[TextRow]:
    """The texts of a string or an object; a list of captions gives several."""
    if isinstance(record, str):
        yield TextRow(whole_text(record, where).strip(), where, image)
        return
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a text or an object, got {type(record).__name__}")
    value = record[_column(list(record), column, where)]
    for name in ("image_id", "image", "file_name", "filename", "image_name", "cocoid"):
        if image is None and isinstance(record.get(name), (str, int)):
            image = str(record[name])
    split = record["split"] if isinstance(record.get("split"), str) else None
    label = next((str(record[name]) for name in LABELS if isinstance(record.get(name), (str, int))), None)
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict):
            yield from (replace(row, split=row.split or split) for row in _record(one, None, where, image))
        elif isinstance(one, str):
            yield TextRow(whole_text(one, where).strip(), where, image, split, label)
        else:
            raise ValueError(f"{where}: expected a text, got {type(one).__name__}")


def _column(names: list[str], column: str | None, where: str) -> str:
    known = {name.lower(): name for name in reversed(names)}
    if column in names:
        return str(column)
    for wanted in (column,) if column is not None else COLUMNS:
        if wanted.lower() in known:
            return known[wanted.lower()]
    listed = ", ".join([repr(name[:40])[1:-1] for name in names[:12]] + ["..."] * (len(names) > 12)) or "nothing"
    if column is not None:
        raise ValueError(f"{where}: no column {column!r}; there are: {listed}")
    raise ValueError(f"{where}: none of the columns {', '.join(COLUMNS)}; there are: {listed}. Name the column")


_READERS: dict[str, Callable[[Path, str | None], Iterator[TextRow]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".parquet": _parquet,
    ".tar": _tar,
    ".token": _token_file,
}
