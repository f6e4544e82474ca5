"""results.json and results.csv: the figures of a run for people, spreadsheets and other tools."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leaf_diffusion.runs.files import atomic_write
from leaf_diffusion.runs.records import ResultRow, parse
from leaf_diffusion.text.visible import visible

COLUMNS = tuple(ResultRow.model_fields)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # the wide ones count for some spreadsheets


def write_results(folder: str | Path, results: Mapping[str, Any]) -> None:
    """Write results.json and, of its "rows", results.csv. Non-finite numbers become null (an interval of one prompt).

    Every row has the columns of COLUMNS; more are kept. Raises ValueError naming what a row lacks or holds wrongly.
    """
    whole = {name: _finite(value) for name, value in results.items()}
    if not isinstance(whole.get("rows"), list):
        raise ValueError('results hold "rows", a list')
    clean: list[dict[str, Any]] = whole["rows"]
    for index, row in enumerate(clean):
        try:
            parse(ResultRow, row)
        except ValueError as error:
            raise ValueError(f"result row {index}: {error}") from error
    folder = Path(folder)
    text = json.dumps(whole, ensure_ascii=False, allow_nan=False, indent=1)
    atomic_write(folder / "results.json", f"{text}\n".encode())
    atomic_write(folder / "results.csv", results_csv(clean).encode())


def results_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV text. Text that a spreadsheet would run as a formula gets a leading apostrophe, characters that are not seen
    become codes; numbers stay numbers."""
    extra = sorted({key for row in rows for key in row} - set(COLUMNS))
    buffer = io.StringIO()
    writer = csv.writer(buffer)  # CRLF (RFC 4180): then a lone CR or LF in a text is quoted too
    writer.writerow([*COLUMNS, *map(csv_cell, extra)])
    for row in rows:
        writer.writerow([csv_cell(row.get(name)) for name in [*COLUMNS, *extra]])
    return buffer.getvalue()


def csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return str(value)
    text = visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return f"'{text}" if text.startswith(_FORMULA) else text


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
