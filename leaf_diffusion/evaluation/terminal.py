"""What the terminal shows of a run: what is there already, a progress bar a stage, the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from leaf_diffusion.reports.sections import Matrix
from leaf_diffusion.runs import RunStore
from leaf_diffusion.text.visible import readable


def print_found(console: Console, store: RunStore, units: Mapping[str, int]) -> None:
    """What is recorded already, and what a crash tore. units: kind -> how many are planned."""
    done = {kind: store.count(kind) for kind in units}
    if any(done.values()):
        found = ", ".join(f"{done[kind]} of {total} {kind}" for kind, total in units.items())
        console.print(f"continuing: {found} are there", soft_wrap=True, highlight=False)
    if store.torn:
        torn = ", ".join(f"{kind} ({size:,} bytes)" for kind, size in store.torn.items())
        console.print(f"[yellow]torn by a crash and computed again: the last record of {torn}[/]", soft_wrap=True)


class _Progress(Progress):
    """Bars, and a line under them."""

    note = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(self.note, style="dim")


class Bars:
    """Progress over the kinds of units of a run, with the time left of each and of all."""

    def __init__(self, console: Console, units: Mapping[str, int], store: RunStore) -> None:
        columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn())
        self.progress = _Progress(
            *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console
        )
        self._store, self._units = store, dict(units)
        self._tasks = {
            # a bar that waits for its turn must not count its waiting as work
            name: self.progress.add_task(name, total=total, completed=store.count(name), start=False)
            for name, total in self._units.items()
        }

    def _advance(self, name: str) -> Callable[[int], None]:
        def advance(n: int) -> None:
            self.progress.advance(self._tasks[name], n)
            self.progress.note = str(self._store.time_left() or "")

        return advance

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def start(self, name: str) -> Callable[[int], None]:
        """Start one bar's clock; returns the function that advances it."""
        self.progress.start_task(self._tasks[name])
        self._store.begin(name, self._units)
        self.progress.note = str(self._store.time_left() or "")
        return self._advance(name)


def print_matrix(console: Console, matrix: Matrix) -> None:
    """A table of results, as the report has it."""
    under = escape(" ".join(matrix.notes)) or None
    table = Table(
        title=escape(matrix.title),
        caption=under,
        box=SIMPLE_HEAD,
        padding=(0, 1),
        title_justify="left",
        caption_justify="left",
    )
    for column in ("", *matrix.columns, "n"):
        table.add_column(escape(readable(column)))
    for label, cells, n in matrix.lines:
        shown = [f"{escape(cell.text)} [dim]{escape(cell.sub)}[/]" if cell.sub else escape(cell.text) for cell in cells]
        table.add_row(escape(readable(label)), *shown, n)
    console.print(table)


def quiet() -> None:
    """No progress bars and notices of the libraries beside ours (truncated prompts, say, are counted here)."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
