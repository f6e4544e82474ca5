"""Encoders of several runs in one table a metric: a page to sort, each figure linked to the run it is from."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from leaf_diffusion.reports.html import templates
from leaf_diffusion.reports.metrics import attack_notes, metric_of
from leaf_diffusion.reports.results import METRICS, REPORT, Metric, sample_said
from leaf_diffusion.runs import ResultRow, Run, atomic_write, load_run
from leaf_diffusion.runs.spec import RunSpec
from leaf_diffusion.text.visible import isolated

OF_ENCODERS = ("encoders", "fingerprints", "main_comparison")
"""Settings that may differ: which encoders a run has."""
OF_ATTACKS = (
    "attack", "attacks", "attack_parameters", "k", "constraint", "constraints", "protocols", "given_attacks", "n_positions",
    "rho", "exact", "objective", "feature", "precision", "goals",
)  # fmt: skip
"""And these: what the prompts went through, which a column says."""
OWN = ("eps", "condition", "captions", "queries")
"""Columns of single experiments."""
MOST = 12
"""Differences between runs that an error names."""


@dataclass(frozen=True)
class Column:
    """What prompts went through. `searched`: the settings of the search, as JSON, where there was one."""

    protocol: str
    source: str | None
    attack: str | None
    constraint: str | None
    k: int
    own: tuple[tuple[str, str], ...]
    searched: str

    @property
    def label(self) -> str:
        """As a table's head says it; columns of other searches may have the same."""
        extra = [f"{name} {isolated(value)}" for name, value in self.own]
        if self.protocol == "clean" or not self.k:
            return ", ".join(["clean" if self.protocol == "clean" else self.protocol, *extra])
        on = "itself" if self.protocol == "adaptive" else isolated(self.source or "another")
        constraint = self.constraint or "no constraint"
        return ", ".join([f"attacked on {on}", f"{self.attack}", constraint, f"k={self.k}", *extra])


@dataclass(frozen=True)
class Shown:
    """A figure: as text, as a number to sort by, with its interval, sample and run."""

    text: str
    number: float
    interval: str
    sample: str
    exact: bool
    run: str
    link: str


@dataclass(frozen=True)
class Board:
    """A metric's table: encoders, best first by the column `leading`, under what the columns say. falling: less is better."""

    title: str
    meaning: str
    columns: Sequence[str]
    leading: int
    lines: Sequence[tuple[str, Sequence[Shown | None]]]
    notes: Sequence[str]
    falling: bool


def write_leaderboard(runs: Sequence[Run | str | Path], path: Path, metrics: Sequence[str] = ()) -> Path:
    """Write the page of several finished runs of one experiment and return its path; default: all metrics they have.

    Raises ValueError for runs whose figures cannot stand beside each other (with what differs), for an encoder's name that means
    two encoders, for runs without results and for metrics that none has; OSError where the page cannot be written.
    """
    found = [run if isinstance(run, Run) else load_run(run) for run in runs]
    if not found:
        raise ValueError("name one run folder or more")
    check_comparable(found)
    boards = list(_boards(found, path, metrics))
    script = templates().get_template("leaderboard.js").render()
    sha256 = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = templates().get_template("leaderboard.html.j2")
    content = page.render(
        boards=boards,
        script=Markup(script),
        sha256=Markup(sha256),
        experiment=str(found[0].spec.settings.get("experiment", "")),
        runs=[(run.folder.resolve().name, _link(run, path), run.spec.identity) for run in found],
    )
    atomic_write(path, content.encode())
    return path


def check_comparable(runs: Sequence[Run]) -> None:
    """ValueError where runs differ in more than their encoders and attacks, or one name means two encoders."""
    first, *others = runs
    for run in others:
        if differences := RunSpec(_shared(run)).differences(RunSpec(_shared(first))):
            more = f"; and {len(differences) - MOST} more" if len(differences) > MOST else ""
            raise ValueError(
                f"{first.folder} (there) and {run.folder} (asked) cannot stand in one table: {'; '.join(differences[:MOST])}{more}"
            )
    known: dict[str, tuple[object, Run]] = {}
    for run in runs:
        for label, weights in _encoders(run).items():
            before = known.setdefault(label, (weights, run))
            if before[0] != weights:
                raise ValueError(
                    f'"{label}" is one encoder in {before[1].folder} and another in {run.folder}: evaluate one again under '
                    "another name (--encoders name=source)"
                )


def _shared(run: Run) -> dict[str, object]:
    settings = run.spec.settings
    return {key: value for key, value in settings.items() if key not in OF_ENCODERS and key not in OF_ATTACKS}


def _encoders(run: Run) -> Mapping[str, object]:
    named = run.spec.settings.get("encoders", run.spec.settings.get("fingerprints", {}))
    return named if isinstance(named, Mapping) else {}


def _boards(runs: Sequence[Run], path: Path, metrics: Sequence[str]) -> list[Board]:
    cells: dict[str, dict[tuple[str, Column], tuple[ResultRow, Run]]] = {}
    for run in runs:
        rows = [row for row in run.results.rows if row.baseline is None and row.protocol != "floor"]
        if not rows:
            raise ValueError(f"{run.folder} has no results yet: give the command that started it again")
        for row in rows:
            if row.mean is not None:
                cells.setdefault(row.metric, {}).setdefault((row.encoder, _column(row, run)), (row, run))
    if unknown := [key for key in metrics if key not in cells]:
        raise ValueError(f"no run has the metric {unknown[0]!r}; there are: {', '.join(cells)}")
    known = list(METRICS)
    keys = metrics or sorted(cells, key=lambda key: known.index(key) if key in known else len(known))
    return [_board(metric_of(key), cells[key], path) for key in keys]


def _column(row: ResultRow, run: Run) -> Column:
    settings = run.spec.settings
    how = {key: settings[key] for key in OF_ATTACKS if key in settings and key not in ("k", "protocols")}
    own = tuple((name, str(value)) for name in OWN if (value := row.column(name)) is not None)
    source = row.source if row.protocol == "transfer" else None
    searched = json.dumps(how, sort_keys=True, default=str) if row.k else ""
    return Column(row.protocol, source, row.attack, row.constraint, row.k or 0, own, searched)


def _board(metric: Metric, cells: Mapping[tuple[str, Column], tuple[ResultRow, Run]], path: Path) -> Board:
    encoders = list(dict.fromkeys(encoder for encoder, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    order = ("clean", "adaptive", "transfer")
    columns.sort(key=lambda c: (order.index(c.protocol) if c.protocol in order else len(order), c.k))
    leading = next((column for column in columns if column.k), columns[0])

    def rank(encoder: str) -> tuple[bool, float]:
        measured = cells.get((encoder, leading))
        value = None if measured is None else measured[0].mean
        return value is None, 0.0 if value is None else (-value if metric.higher_is_better else value)

    shown = [(each, [_shown(cells.get((each, column)), metric, path) for column in columns]) for each in encoders]
    shown.sort(key=lambda line: rank(line[0]))
    labels, notes = _told(columns)
    rows = [row for row, _ in cells.values()]
    lines = [(isolated(encoder), line) for encoder, line in shown]
    notes = [*attack_notes(rows, metric), *notes]
    at = columns.index(leading)
    return Board(metric.title, metric.meaning, labels, at, lines, notes, not metric.higher_is_better)


def _told(columns: Sequence[Column]) -> tuple[list[str], list[str]]:
    """The columns' labels, numbered where searches of one label differ, and notes that say in what."""
    labels, notes = list[str](), list[str]()
    for column in columns:
        same = [each for each in columns if each.label == column.label]
        if len(same) == 1:
            labels.append(column.label)
            continue
        number = same.index(column) + 1
        labels.append(f"{column.label} ({number})")
        mine = json.loads(column.searched or "{}")
        others = [json.loads(each.searched or "{}") for each in same]
        differing = {key: mine.get(key) for key in mine if any(other.get(key) != mine[key] for other in others)}
        notes.append(f"{labels[-1]}: {json.dumps(differing, ensure_ascii=False)}")
    return labels, notes


def _shown(measured: tuple[ResultRow, Run] | None, metric: Metric, path: Path) -> Shown | None:
    if measured is None:
        return None
    row, run = measured
    number = 0.0 if row.mean is None else row.mean
    name = isolated(run.folder.resolve().name)
    return Shown(
        metric.show(row.mean),
        number,
        metric.show_interval(row),
        sample_said([row]),
        bool(row.exact),
        name,
        _link(run, path),
    )


def _link(run: Run, path: Path) -> str:
    """From the page to the run's report, or to its results where it has none."""
    target = run.folder / REPORT if (run.folder / REPORT).is_file() else run.folder / "results.json"
    return quote(Path(os.path.relpath(target.resolve(), path.resolve().parent)).as_posix())
