"""The frame of an experiment: options, a run folder that can be resumed and shared, records, results, a page.

An experiment is a class of one screen: it loads and checks, names its units of work, computes them a few at a time, and
turns the records into result rows and a page. Everything else is here.
"""

from __future__ import annotations

import os
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.evaluation.encoders import EncoderName
from leaf_diffusion.evaluation.t2i.setup import check_writable
from leaf_diffusion.evaluation.terminal import Bars, quiet
from leaf_diffusion.metrics import paired_bootstrap
from leaf_diffusion.reports.pages.experiment import Page, write_page
from leaf_diffusion.reports.sections import Matrix
from leaf_diffusion.runs import RunSpec, RunStore, load_run
from leaf_diffusion.runs.scheduler import Batch, chunks, work_through
from leaf_diffusion.text.visible import readable

NOT_IDENTITY = ("encoders", "image_encoders", "text_encoder", "output", "device", "share")
"""Options that change no result, or that the identity holds in another form (fingerprints)."""


Records = Mapping[str, Sequence[dict[str, Any]]]
"""Kind -> its records, in the order of the stage's units."""


@dataclass(frozen=True)
class Common:
    """Options that every experiment has."""

    encoders: tuple[str, ...] = ("original", "leaf", "typo-augmented")
    """Labels of the world's encoders, sources ("world:leaf", a folder, a Hub id) or LABEL=SOURCE; "+speller" adds
    spelling correction. The first is the baseline of the differences."""
    output: Path | None = None
    """The run's folder. Default: runs/ and a name that follows from what the run is."""
    device: str = "cpu"
    share: bool = False
    """Work on the run's folder together with other processes that are given the same command; `accelerate launch` and
    `torchrun` need no flag."""


@dataclass(frozen=True)
class Stage:
    """One kind of record: `units` by id, and what computes the records of some of them, in their order.

    `size` units are computed at a time; the frame adds "id" and writes the records down. `work` is also given the store,
    for images and for the records of earlier stages.
    """

    kind: str
    units: Mapping[str, Any]
    work: Callable[[RunStore, Sequence[Any]], Iterable[Mapping[str, Any]]]
    size: int = 8


@dataclass(frozen=True)
class Setting:
    """What a value was measured of. `more`: further columns of the result rows."""

    encoder: str
    metric: str
    protocol: str = "clean"
    source: str | None = None
    attack: str | None = None
    constraint: str | None = None
    k: int = 0
    more: tuple[tuple[str, Any], ...] = ()


O = TypeVar("O", bound=Common)  # noqa: E741


class Experiment(ABC, Generic[O]):
    """Subclasses load and check in `__init__` (ValueError or OSError says what is wrong, before anything is made)."""

    name: ClassVar[str]
    """In the run's specification and folder."""

    def __init__(self, options: O) -> None:
        self.options = options

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What decides the results besides the options: fingerprints, texts."""

    @abstractmethod
    def stages(self) -> Sequence[Stage]: ...

    @abstractmethod
    def values(self, records: Mapping[str, Sequence[dict[str, Any]]]) -> Mapping[Setting, Mapping[str, float]]:
        """A number a unit (prompt, image) for each setting, from the records by kind."""

    @abstractmethod
    def page(self, rows: Sequence[dict[str, Any]], records: Mapping[str, Sequence[dict[str, Any]]]) -> Page:
        """The report; images of the run are looked up with `self.folder`."""

    def extra(self, records: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
        """More for results.json: counts of what was left out, truncated or unchanged."""
        return {}

    def labels(self) -> Sequence[str]:
        """What is compared, in the order of the differences: the encoders, unless a subclass compares something else."""
        return [EncoderName.parse(text, world=True).label for text in self.options.encoders]

    folder: Path


def load_encoders(names: Sequence[str], device: str) -> dict[str, TextEncoder]:
    """Label -> encoder; ValueError for labels given twice, whatever `load_text_encoder` raises otherwise."""
    parsed = [EncoderName.parse(text, world=True) for text in names]
    if len({name.label for name in parsed}) < len(parsed):
        raise ValueError(f"--encoders: two encoders share a label: {[n.label for n in parsed]}; write LABEL=SOURCE")
    if not parsed:
        raise ValueError("--encoders: name at least one encoder")
    return {name.label: load_text_encoder(name.source, defence=name.defence, device=device) for name in parsed}


def result_rows(values: Mapping[Setting, Mapping[str, float]], encoders: Sequence[str]) -> list[dict[str, Any]]:
    """Means with 95% intervals over units, then the paired difference of every two encoders in the same setting."""
    rows = []
    places: dict[tuple[Any, ...], dict[str, Setting]] = {}
    for setting in values:
        place = tuple(value for name, value in vars(setting).items() if name not in ("encoder", "source"))
        source = setting.source if setting.protocol == "transfer" else None
        places.setdefault((*place, source), {})[setting.encoder] = setting
    for found in places.values():
        rows += [_row(each, None, values[each]) for each in found.values() if values[each]]
        for first, second in combinations([found[name] for name in encoders if name in found], 2):
            shared = sorted(values[first].keys() & values[second].keys())
            if shared:
                mine, theirs = ({key: values[s][key] for key in shared} for s in (second, first))
                rows.append(_row(second, first.encoder, mine, theirs))
    return rows


def _row(
    setting: Setting, baseline: str | None, values: Mapping[str, float], against: Mapping[str, float] | None = None
) -> dict[str, Any]:
    found = paired_bootstrap(values, against)
    return {
        "encoder": setting.encoder,
        "baseline": baseline,
        "protocol": setting.protocol,
        "source": setting.source,
        "attack": setting.attack,
        "constraint": setting.constraint,
        "k": setting.k,
        "metric": setting.metric,
        "mean": found.mean,
        "ci_low": found.ci_low,
        "ci_high": found.ci_high,
        "n": found.n,
        "seeds": 1,
        **dict(setting.more),
    }


def run(kind: type[Experiment[O]], options_type: type[O], argv: Sequence[str] | None = None) -> int:
    """Run an experiment, or continue it; returns the exit status (2: the input is wrong, nothing was started)."""
    first = int(os.environ.get("RANK", "0")) == 0  # of a launcher's processes the first one speaks
    console = Console(quiet=not first)
    quiet()
    try:
        options = tyro.cli(options_type, args=argv, prog=f"leaf-diffusion {kind.name}")
        with console.status("loading and checking"):
            if options.output is not None:
                check_writable(options.output)
            experiment = kind(options)
            store = _open(experiment, argv)
    except (ValueError, OSError) as error:
        Console().print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return 2
    try:
        with store:
            report = _work(experiment, store, console)
    except (KeyboardInterrupt, OSError) as error:
        Console().print(
            f"[red]stopped[/] {escape(str(error))}: what is done is kept, the same command continues", soft_wrap=True
        )
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    if report is not None:
        console.print(f"report: {report}", soft_wrap=True, highlight=False)
    return 0


def _open(experiment: Experiment[O], argv: Sequence[str] | None) -> RunStore:
    options = experiment.options
    chosen = {name: value for name, value in asdict(options).items() if name not in NOT_IDENTITY}
    texts = {name: str(value) if isinstance(value, Path) else value for name, value in chosen.items()}
    spec = RunSpec({"experiment": experiment.name, **texts, **experiment.settings()})
    experiment.folder = options.output or Path("runs") / f"{experiment.name}-{spec.identity[:8]}"
    arguments = sys.argv[1:] if argv is None else list(argv)
    shared = options.share or int(os.environ.get("WORLD_SIZE", "1")) > 1
    command = shlex.join(["leaf-diffusion", experiment.name, *arguments])
    return RunStore.open(experiment.folder, spec, command=command, shared=shared)


def _work(experiment: Experiment[O], store: RunStore, console: Console) -> Path | None:
    stages = experiment.stages()
    totals = {stage.kind: len(stage.units) for stage in stages}
    with Bars(console, totals, store) as bars:
        for stage in stages:
            work_through(store, stage.kind, _batches(stage, store), bars.start(stage.kind))
    if not store.claim("results"):
        console.print(f"all is done; another process writes the results of {store.folder}", soft_wrap=True)
        return None
    records = {}
    for stage in stages:
        by_id = {record["id"]: record for record in store.records(stage.kind)}
        records[stage.kind] = [by_id[unit] for unit in stage.units]
    rows = result_rows(experiment.values(records), list(dict.fromkeys(experiment.labels())))
    store.write_results({"rows": rows, **experiment.extra(records)})
    page = experiment.page(load_run(store.folder).results["rows"], records)
    for matrix in (each for section in page.sections for each in section.matrices):
        console.print(_table(matrix))
    return write_page(store.folder, page, store.spec, load_run(store.folder).environment)


def _batches(stage: Stage, store: RunStore) -> list[Batch]:
    kept = {record["id"]: _images(record) for record in store.records(stage.kind)}

    def batch(ids: Sequence[str]) -> Batch:
        def work() -> None:
            for unit, record in zip(ids, stage.work(store, [stage.units[unit] for unit in ids]), strict=True):
                store.append(stage.kind, {"id": unit, **record})

        return Batch(ids, work, redo=[path for unit in ids for path in kept.get(unit, [])])

    return [batch(ids) for ids in chunks(list(stage.units), stage.size)]


def _images(record: Mapping[str, Any]) -> list[str]:
    """The files that belong to a record: "image", or several "images"."""
    return [path for path in [record.get("image"), *record.get("images", [])] if path]


def _table(matrix: Matrix) -> Table:
    table = Table(title=escape(matrix.title), box=SIMPLE_HEAD, padding=(0, 1), title_justify="left")
    for column in ("", *matrix.columns, "n"):
        table.add_column(escape(readable(column)))
    for label, cells, n in matrix.lines:
        shown = [f"{cell.text} [dim]{escape(cell.sub)}[/]" if cell.sub else cell.text for cell in cells]
        table.add_row(escape(readable(label)), *shown, n)
    return table
