"""results.json and results.csv: the figures of a run, typed, for reports, people, spreadsheets and other tools."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import Field

from leaf_diffusion.runs.files import atomic_write
from leaf_diffusion.runs.records import Count, Number, Protocol, Typed
from leaf_diffusion.text.visible import visible

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # the wide ones count for some spreadsheets


class ResultRow(Typed):
    """One metric of one encoder, or its paired difference to `baseline`, over `n` units of so many independent `clusters`.

    p: of no difference; p_adjusted: the same after Holm's adjustment for all differences by the metric but the `main` one,
    which the run declared before it started; exact: no allowed edit does worse. The other fields with a default are columns
    of single experiments: `eps`, of 255; the `condition` of a swap; which `captions`; `queries` of a random search.
    """

    encoder: str
    baseline: str | None
    protocol: Protocol
    source: str | None
    attack: str | None
    constraint: str | None
    k: Count | None
    metric: str
    mean: Number | None
    ci_low: Number | None
    ci_high: Number | None
    n: Count
    seeds: Count
    clusters: Count | None = None
    p: Number | None = None
    p_adjusted: Number | None = None
    main: bool | None = None
    exact: bool | None = None
    eps: Number | None = None
    condition: str | None = None
    captions: str | None = None
    queries: Count | None = None

    def column(self, name: str) -> object:
        """A column by its name, an experiment's own too; None where the row lacks it."""
        return getattr(self, name, None)


COLUMNS = tuple(name for name, field in ResultRow.model_fields.items() if field.is_required())
"""What every row has."""


class CostRow(Typed):
    """One metric of an encoder under one condition."""

    condition: str
    encoder: str
    protocol: str
    metric: str
    baseline: str | None
    mean: Number | None
    ci_low: Number | None
    ci_high: Number | None
    n: Count
    clusters: Count | None = None
    p_adjusted: Number | None = None


class Condition(Typed):
    """What else a pipeline is given."""

    key: str
    title: str


class GivenPrompt(Typed):
    """A prompt as it is given."""

    given: str
    negative: str | None = None


class MeasuredCondition(Condition):
    """A condition with all that its page says. truncated: how many prompts each encoder cut."""

    about: str
    truncated: dict[str, int]
    prompts: list[GivenPrompt]


class SwapCosts(Typed):
    """The costs of a swap, what they were measured with, and the identity of the run that measured them."""

    identity: str | None = None
    rows: list[CostRow]
    conditions: list[Condition]


class AttackSet(Typed):
    """An attack set: how many prompts, for how many of them the score is the `exact` worst, and the means over them."""

    source: str
    k: Count
    n: Count
    unchanged: Count
    truncated: Count
    distance: Number | None
    score: Number | None
    queries: Number | None
    unseen_tokens: Number | None
    exact: Count | None = None


class Counts(Typed):
    """How many images there are, of how many drawings, how many of a truncated prompt or of the clean one."""

    images: Count | None = None
    drawn: Count | None = None
    truncated: Count | None = None
    given_unchanged: Count | None = None


class RunResults(Typed):
    """results.json. `clusters`: which units fall together, by unit. What else an experiment counted is kept beside the rows."""

    rows: list[ResultRow]
    clusters: dict[str, str] = Field(default_factory=dict)


class EvaluationResults(RunResults):
    """results.json of the text-to-image evaluation. `feature_space`: of all distances, from before there were several;
    `left_out`: sentences about figures that could not be measured."""

    attacks: list[AttackSet] = Field(default_factory=list)
    counts: Counts = Counts()
    feature_space: str | None = None
    feature_spaces: dict[str, str] = Field(default_factory=dict)
    real_images: Count | None = None
    left_out: list[str] = Field(default_factory=list)
    swap_cost: SwapCosts | None = None


def write_results(folder: str | Path, results: RunResults) -> None:
    """Write results.json and, of its rows, results.csv. Non-finite numbers become null."""
    folder = Path(folder)
    whole = _finite(results.model_dump(exclude_unset=True))
    text = json.dumps(whole, ensure_ascii=False, allow_nan=False, indent=1)
    atomic_write(folder / "results.json", f"{text}\n".encode())
    atomic_write(folder / "results.csv", results_csv(results.rows).encode())


def results_csv(rows: Iterable[ResultRow]) -> str:
    """CSV text. Text that a spreadsheet would run as a formula gets a leading apostrophe, characters that are not seen
    become codes; numbers stay numbers."""
    lines = [row.model_dump(exclude_unset=True) for row in rows]
    extra = sorted({key for line in lines for key in line} - set(COLUMNS))
    buffer = io.StringIO()
    writer = csv.writer(buffer)  # CRLF (RFC 4180): then a lone CR or LF in a text is quoted too
    writer.writerow([*COLUMNS, *map(_cell, extra)])
    for line in lines:
        writer.writerow([_cell(_finite(line.get(name))) for name in [*COLUMNS, *extra]])
    return buffer.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return str(value)
    text = visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return f"'{text}" if text.startswith(_FORMULA) else text


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
