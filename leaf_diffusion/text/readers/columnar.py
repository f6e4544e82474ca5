"""Parquet and Hugging Face `datasets`: only the columns that a row is made of are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leaf_diffusion.text.readers.rows import (
    LABELS,
    OneImageEach,
    TextRow,
    find_column,
    known_columns,
    record_rows,
    text_column,
)


def parquet(path: Path, column: str | None) -> Iterator[TextRow]:
    """The rows of a Parquet file; of images that it holds only the paths."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
        from pyarrow.types import is_struct
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('Parquet files need pyarrow: pip install "leaf_diffusion[data]"') from error
    try:
        file, number, images = ParquetFile(path), 0, OneImageEach()
        schema = file.schema_arrow
        wanted = text_column(list(schema.names), column, str(path))
        kept = [wanted]
        for name in known_columns(schema.names):
            kind = schema.field(name).type
            if not is_struct(kind):
                kept += [name] if name != wanted else []
            elif kind.get_field_index("path") >= 0:
                kept.append(f"{name}.path")
        for batch in file.iter_batches(columns=kept):
            for record in batch.to_pylist():
                where = f"{path}, row {number}"
                images.check_record(record, where)
                yield from record_rows(record, wanted, where)
                number += 1
    except (ArrowException, OSError, UnicodeDecodeError) as error:  # of a broken page as of a broken header
        raise ValueError(f"{path} is no Parquet file that can be read: {error}") from error


def dataset(name: str, column: str | None, split: str | None) -> Iterator[TextRow]:
    """The rows of a data set by its name or folder; its images are not decoded. FileNotFoundError where there is none."""
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
    names = list(loaded.column_names)
    wanted = text_column(names, column, f"dataset:{name}")
    kept = [each for each in known_columns(names) if each != wanted and hasattr(loaded.features[each], "dtype")]
    kept = [each for each in kept if not isinstance(loaded.features[each], datasets.Image)]
    label = find_column(kept, LABELS)
    classes = getattr(loaded.features[label], "names", None) or [] if label is not None else []  # of a ClassLabel
    images = OneImageEach()
    for i, record in enumerate(loaded.select_columns([wanted, *kept])):
        where = f"dataset:{name}, row {i}"
        if label is not None and isinstance(record[label], int) and 0 <= record[label] < len(classes):
            record[label] = classes[record[label]]
        images.check_record(record, where)
        yield from record_rows(record, wanted, where)
