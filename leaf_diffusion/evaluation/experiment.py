"""The frame of an experiment: options, a run folder that can be resumed and shared, records, results, a page.

An experiment is a class of one screen: it loads and checks, names its units of work, computes them a few at a time, and
turns the records into result rows and a page. Everything else is here, the same for all of them.
"""

from __future__ import annotations

import os
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, runtime_checkable

from rich.console import Console
from rich.markup import escape
from torch import nn

from leaf_diffusion.command_line import parse, run_command
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.evaluation.dry_run import dry_run
from leaf_diffusion.evaluation.encoders import EncoderName
from leaf_diffusion.evaluation.folders import check_space, check_writable
from leaf_diffusion.evaluation.options import RunOptions, identity
from leaf_diffusion.evaluation.results import Clusters, Comparison, Setting, Values, all_pairs, result_rows
from leaf_diffusion.evaluation.stages import Stage, recorded
from leaf_diffusion.evaluation.strict import strict
from leaf_diffusion.evaluation.terminal import Bars, print_found, print_matrix, quiet
from leaf_diffusion.reports.pages.experiment import Page, main_said, write_page
from leaf_diffusion.reports.results import REPORT
from leaf_diffusion.reports.sections import Matrix
from leaf_diffusion.runs import ResultRow, RunResults, RunSpec, RunStore, load_run
from leaf_diffusion.runs.records import Record
from leaf_diffusion.runs.scheduler import POLL_SECONDS, run_batches

NOT_IDENTITY = ("encoders", "output", "device", "share", "strict", "dry_run", "config")
"""Options that change no result, or that the identity holds in another form (fingerprints)."""

Records = Mapping[str, Sequence[Record]]
"""Kind -> its records, in the order of the stage's units."""


@runtime_checkable
class HasModule(Protocol):
    """An encoder of texts or of images."""

    @property
    def module(self) -> nn.Module: ...


@dataclass(frozen=True)
class Report:
    """The report that was written, and what the terminal shows of it, the `main` comparison first."""

    path: Path
    tables: Sequence[Matrix] = ()
    sentences: Sequence[str] = ()
    main: str = ""


O = TypeVar("O", bound=RunOptions)  # noqa: E741


class Experiment(ABC, Generic[O]):
    """Subclasses load and check in `__init__` (ValueError or OSError says what is wrong, before anything is made), and
    write `page`, or `report` where theirs is a page of another kind."""

    name: ClassVar[str]
    """In the run's specification."""
    command: ClassVar[str] = ""
    """Of the command line. Default: the name."""
    not_identity: ClassVar[Sequence[str]] = ()
    """Options besides NOT_IDENTITY that change no result, or that `settings` holds in another form."""
    folder: Path
    """Of the run; set by the frame before any work."""

    def __init__(self, options: O) -> None:
        self.options = options

    @abstractmethod
    def settings(self) -> Mapping[str, object]:
        """What decides the results besides the options: fingerprints, texts."""

    @abstractmethod
    def stages(self) -> Sequence[Stage[Any]]: ...

    @abstractmethod
    def values(self, records: Records) -> Mapping[Setting, Values]:
        """A number a unit (prompt, image) for each setting, from the records by kind."""

    def clusters(self) -> Clusters:
        """Which units fall together, as prompts of one noun do: they are one in the intervals. Default: none."""
        return {}

    def page(self, rows: Sequence[ResultRow], records: Records) -> Page:
        """The report; images of the run are looked up with `self.folder`."""
        raise NotImplementedError(f"{type(self).__name__} has neither a page nor a report of its own")

    def report(self, store: RunStore, rows: Sequence[ResultRow], records: Records) -> Report:
        """Write report.html."""
        page = self.page(rows, records)
        path = write_page(store.folder, page, store.spec, load_run(store.folder).environment, main_said(rows))
        return Report(path, [each for section in page.sections for each in section.matrices])

    def extra(self, records: Records) -> Mapping[str, object]:
        """More for results.json: counts of what was left out, truncated or unchanged."""
        return {}

    def further_rows(self, store: RunStore, records: Records) -> Sequence[ResultRow]:
        """Result rows that are no means over units: distances between sets of images."""
        return []

    def labels(self) -> Sequence[str]:
        """What is compared, in the order of the differences: the encoders, unless a subclass compares something else."""
        return [EncoderName.parse(text, world=True).label for text in self.options.encoders]

    def pairs(self) -> Sequence[tuple[str, str]]:
        """(encoder, baseline) of the differences."""
        return all_pairs(self.labels())

    def main_comparison(self) -> Comparison | None:
        """The one difference that the run is for, declared before it starts and part of its identity: its verdict stands
        alone, those of all others are adjusted. Default: what the options say, against the first label."""
        labels = self.labels()
        setting = self.options.main_setting(labels) if len(labels) > 1 else None
        return None if setting is None else Comparison(setting, labels[0])

    def folder_name(self) -> str:
        """The beginning of the folder's name where --output gives none."""
        return self.name

    def plan(self) -> Sequence[str]:
        """Sentences that say before the work what will be done and what is left out."""
        return []

    def image_bytes(self) -> int:
        """How much disk the run's images need at most."""
        return 0

    def modules(self) -> Mapping[str, nn.Module]:
        """What is loaded, by name, for --dry-run. Default: the experiment's encoders."""
        found: dict[str, nn.Module] = {}
        for name, value in vars(self).items():
            for label, each in value.items() if isinstance(value, Mapping) else [("", value)]:
                if isinstance(each, HasModule):
                    found[f"{name.removesuffix('s')} {label}".strip()] = each.module
        return found

    def sample(self) -> Self | None:
        """A copy with a few units of each stage, which need no others: what --dry-run measures. None: the first batch of
        each stage, where no stage needs the records of an earlier one."""
        return None


def load_encoders(names: Sequence[str], device: str) -> dict[str, TextEncoder]:
    """Label -> encoder; ValueError for labels given twice, whatever `load_text_encoder` raises otherwise."""
    parsed = [EncoderName.parse(text, world=True) for text in names]
    if len({name.label for name in parsed}) < len(parsed):
        raise ValueError(f"--encoders: two encoders share a label: {[n.label for n in parsed]}; write LABEL=SOURCE")
    if not parsed:
        raise ValueError("--encoders: name at least one encoder")
    return {name.label: load_text_encoder(name.source, defence=name.defence, device=device) for name in parsed}


def run(kind: type[Experiment[O]], options_type: type[O], argv: Sequence[str] | None = None) -> int:
    """Run an experiment, or continue it; returns the exit status (2: the input is wrong, nothing was started)."""
    command = kind.command or kind.name

    def work(words: Sequence[str]) -> int:
        quiet()
        options = parse(options_type, words, command=command).resolved()
        with strict(options.strict):
            return _run(kind, options, words)

    return run_command(command, work, argv)


def _run(kind: type[Experiment[O]], options: O, arguments: Sequence[str]) -> int:
    first = int(os.environ.get("RANK", "0")) == 0  # of a launcher's processes the first one speaks
    console = Console(quiet=not first)
    with console.status("loading and checking"):
        if options.output is not None:
            check_writable(options.output)
        experiment = kind(options)
        spec = _specification(experiment)
        experiment.folder = options.output or Path("runs") / f"{experiment.folder_name()}-{spec.identity[:8]}"
        check_space(experiment.folder, experiment.image_bytes())
        if not options.dry_run:
            command = shlex.join(["leaf-diffusion", kind.command or kind.name, *arguments])
            kinds = {stage.kind: stage.record for stage in experiment.stages()}
            store = RunStore.open(experiment.folder, spec, kinds=kinds, command=command, shared=options.shared)
    for sentence in experiment.plan():
        console.print(sentence, soft_wrap=True, highlight=False)
    if options.dry_run:
        sample, stages = experiment.sample(), experiment.stages()
        dry_run(console, sample or experiment, spec, stages, experiment.modules(), whole=sample is not None)
        return 0
    try:
        with store:
            report = _work(experiment, store, console)
    except (KeyboardInterrupt, OSError) as error:
        Console().print(
            f"[red]stopped[/] {escape(str(error))}: what is done is kept, the same command continues", soft_wrap=True
        )
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    if report is None:
        console.print(f"all is done; another process wrote the results of {store.folder}", soft_wrap=True)
        return 0
    if report.main:
        console.print(report.main, soft_wrap=True, highlight=False, markup=False)
    for table in report.tables:
        print_matrix(console, table)
    for sentence in report.sentences:
        console.print(sentence, soft_wrap=True, highlight=False)
    console.print(f"report: {report.path}", soft_wrap=True, highlight=False)
    return 0


def _specification(experiment: Experiment[O]) -> RunSpec:
    chosen = identity(experiment.options, (*NOT_IDENTITY, *experiment.not_identity))
    main = experiment.main_comparison()
    alone: dict[str, object] = {"strict": True} if experiment.options.strict else {}
    alone |= {} if main is None else {"main_comparison": main.declared()}
    return RunSpec({"experiment": experiment.name, **chosen, **alone, **experiment.settings()})


def _work(experiment: Experiment[O], store: RunStore, console: Console) -> Report | None:
    """All that is left to do; None where another process wrote the results."""
    stages = experiment.stages()
    totals = {stage.kind: len(stage.units) for stage in stages}
    print_found(console, store, totals)
    with Bars(console, totals, store) as bars:
        for stage in stages:
            advance = bars.start(stage.kind)
            batches = stage.batches(store, strict=experiment.options.strict)
            run_batches(store, stage.kind, batches, advance)
            if stage.after is not None and store.slot == 0:
                stage.after(store)
    if not _first_to_report(store):
        return None
    with console.status("results"):
        records = recorded(store, stages)
        clusters = experiment.clusters()
        rows = [
            *result_rows(experiment.values(records), experiment.pairs(), clusters, experiment.main_comparison()),
            *experiment.further_rows(store, records),
        ]
        found = {"rows": rows, "clusters": dict(clusters), **experiment.extra(records)}
        store.write_results(RunResults.model_validate(found))
        rows = load_run(store.folder).results.rows
        return replace(experiment.report(store, rows, records), main=main_said(rows))


def _first_to_report(store: RunStore) -> bool:
    """Whether this process writes the results and the report: the others wait for it, and one of them does where it dies."""
    report = store.folder / REPORT
    before = report.stat().st_mtime_ns if report.is_file() else None
    if store.claim("results"):
        return True
    while not store.claim("results"):
        time.sleep(POLL_SECONDS)
    return not report.is_file() or report.stat().st_mtime_ns == before
