"""CSV and TSV, Flickr30k's results.csv with bars between its columns, semicolons of Excel."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from leaf_diffusion.text.decoding import text_lines
from leaf_diffusion.text.readers.rows import (
    COLUMNS,
    OneImageEach,
    TextRow,
    find_column,
    known_columns,
    record_rows,
    text_column,
)

MARKS = (",", "\t", "|", ";")


def table(own: str) -> Callable[[Path, str | None], Iterator[TextRow]]:
    """The reader of tables; `own` stands between the columns unless the header shows another mark."""

    def read(path: Path, column: str | None) -> Iterator[TextRow]:
        lines = ((number, line) for number, line in text_lines(path) if line.strip())
        number, first = next(lines, (1, ""))
        mark = None
        if told := re.fullmatch(r"sep=(.)", first):  # Excel's
            mark, (number, first) = told[1], next(lines, (2, ""))
        mark = mark or divider(first, own, column)
        header = [name.strip().removeprefix("\ufeff") for name in _cells(first, mark, f"{path}, line {number}")]
        if twice := [name for name, n in Counter(filter(None, header)).items() if n > 1]:
            raise ValueError(f"{path}, line {number}: the column {twice[0][:80]!r} stands there twice")
        if any(header):
            text_column(header, column, f"{path}, line {number}")
        named = max((i + 1 for i, name in enumerate(header) if name), default=0)
        images = OneImageEach()
        for number, line in lines:
            where = f"{path}, line {number}"
            cells = [cell.strip() for cell in _cells(line, mark, where)]
            if mark == "|" and len(cells) == named - 1 and (lost := re.fullmatch(r"(\d+)\s{2,}(\S.*)", cells[-1])):
                cells[-1:] = lost.groups()  # a row of Flickr30k as it is published lacks its second bar
            if any(cells[len(header) :]):
                raise ValueError(
                    f"{where}: {len(cells)} cells under {len(header)} columns; quote a text that holds {mark!r}"
                )
            if len(cells) < named:
                raise ValueError(f"{where}: {len(cells)} cells under {named} columns")
            if cells == header:
                raise ValueError(f"{where}: the header stands there again; are these two files in one?")
            record = dict(zip(header, cells, strict=False))
            images.check_record(record, where)
            yield from record_rows(record, column, where)

    return read


def divider(header: str, own: str, column: str | None = None) -> str:
    """The mark between the names of a header: the first with which a column of texts is found, else `own`."""
    wanted = COLUMNS if column is None else (column,)
    marks = (mark for mark in (own, *MARKS) if find_column(_names(header, mark), wanted) is not None)
    return next(marks, own)


def is_header(line: str) -> bool:
    """Whether a file of any name begins as a table: names alone, of texts and of what belongs to them."""
    return any(
        len(names := _names(line, mark)) > 1
        and find_column(names, COLUMNS) is not None
        and bool(known_columns(names))
        and all(re.fullmatch(r"\w*", name) for name in names)
        for mark in MARKS
    )


def _names(line: str, mark: str) -> list[str]:
    return [name.strip().strip('"').strip() for name in line.split(mark)]


def _cells(line: str, mark: str, where: str) -> list[str]:
    """The cells of one line: a cell that runs on into the next line is a stray quote, or loses its line's end."""
    if mark == "|":  # there, quotes are letters
        return line.split(mark)
    try:
        return next(csv.reader([line], delimiter=mark, strict=True), [])
    except csv.Error as error:
        raise ValueError(
            f"{where}: no CSV ({error}); is a quote left open? A cell ends in its line; a text that begins with a quote "
            'is written """So"" it says"'
        ) from error
