"""Captions and prompts from whatever file holds them.

Text (one a line), JSONL, CSV and TSV (PartiPrompts), Parquet, the JSON of COCO captions and of the Karpathy split, the
token file of Flickr30k, webdataset tars, and `dataset:NAME` for Hugging Face `datasets`.
"""

from __future__ import annotations

import csv
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

COLUMNS = ("prompt", "caption", "text", "raw", "sentence", "captions", "sentences")
"""Where the text stands, in this order, whatever the case of the letters, unless a column is named."""
LONGEST_MEMBER = 1 << 20


@dataclass(frozen=True)
class TextRow:
    """One caption: where it stands, which picture it belongs to (None: not said), the split (None: not said)."""

    text: str
    where: str
    image: str | None = None
    split: str | None = None


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
    """The first caption of each picture, as the paper's protocols take them; rows without a picture all stay."""
    seen: set[str] = set()
    kept = []
    for row in rows:
        if row.image is None or row.image not in seen:
            kept.append(row)
            seen |= {row.image} if row.image is not None else set()
    return kept


def _lines(path: Path, column: str | None) -> Iterator[TextRow]:
    for number, line in _decoded(path):
        yield TextRow(line.strip(), f"{path}, line {number}")


def _token_file(path: Path, column: str | None) -> Iterator[TextRow]:
    """Flickr30k: "1000092795.jpg#0<tab>caption"."""
    for number, line in _decoded(path):
        image, tab, text = line.partition("\t")
        if not tab or "#" not in image:
            raise ValueError(f"{path}, line {number}: expected IMAGE#NUMBER, a tab and the caption")
        yield TextRow(text.strip(), f"{path}, line {number}", image.rpartition("#")[0])


def _jsonl(path: Path, column: str | None) -> Iterator[TextRow]:
    for number, line in _decoded(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        yield from _record(parse_json(line, where), column, where)


def _json(path: Path, column: str | None) -> Iterator[TextRow]:
    content = parse_json("".join(line for _, line in _decoded(path)), str(path))
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):  # COCO, in the order of its images
        images = content.get("images", [])
        if not isinstance(images, list) or not all(isinstance(i, dict) for i in images):
            raise ValueError(f"{path}: expected COCO's images to be a list of objects")
        names = {str(i.get("id")): str(i.get("file_name", i.get("id"))) for i in images}
        for i, one in enumerate(content["annotations"]):
            where = f"{path}, annotation {i}"
            image = str(one.get("image_id")) if isinstance(one, dict) else ""
            yield from _record(one, column or "caption", where, names.get(image, image))
        return
    records = content.get("images") if isinstance(content, dict) else content  # the Karpathy split, or a plain list
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a list, COCO captions (annotations) or a Karpathy split (images)")
    for i, one in enumerate(records):
        yield from _record(one, column, f"{path}, item {i}")


def _table(delimiter: str) -> Callable[[Path, str | None], Iterator[TextRow]]:
    def read(path: Path, column: str | None) -> Iterator[TextRow]:
        lines = (line for _, line in _decoded(path))
        first = next(lines, "")
        # Flickr30k's results.csv has bars between its columns
        mark = "|" if delimiter == "," and "|" in first and "," not in first else delimiter
        reader = csv.reader([first, *lines], delimiter=mark)
        try:
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                if row:
                    record = dict(zip(header, (cell.strip() for cell in row), strict=False))
                    yield from _record(record, column, f"{path}, line {reader.line_num}")
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
        extra = [name for name in ("image_id", "image", "file_name", "split") if name in names]
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
                if member.size > LONGEST_MEMBER:
                    raise ValueError(f"{where}: {member.size:,} bytes are no caption")
                content = archive.extractfile(member)
                assert content is not None
                text = _utf8(content.read(), where)
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
    for i, value in enumerate(loaded[wanted]):
        yield from _record({wanted: value}, wanted, f"dataset:{name}, row {i}")


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
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict):
            yield from (replace(row, split=row.split or split) for row in _record(one, None, where, image))
        elif isinstance(one, str):
            yield TextRow(whole_text(one, where).strip(), where, image, split)
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


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. ValueError that begins with `where`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no JSON ({error.msg})") from error
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{where}: no JSON that can be read ({error})") from error
    except RecursionError:
        raise ValueError(f"{where}: no JSON that can be read (nested too deeply)") from None


def whole_text(text: str, where: str) -> str:
    """`text` as it is. ValueError for half a surrogate pair: JSON can spell it, no encoder and no file takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: half a surrogate pair at character {error.start}; write it as UTF-8") from None
    return text


def _decoded(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, UTF-8; a byte-order mark is dropped."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield number, _utf8(line, f"{path}, line {number}", "utf-8-sig" if number == 1 else "utf-8")


def _utf8(content: bytes, where: str, encoding: str = "utf-8") -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from None


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
