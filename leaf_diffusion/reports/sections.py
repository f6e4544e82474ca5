"""The report's tables and galleries as plain values: everything that the template prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from leaf_diffusion.reports.gallery import GalleryCell, GalleryRow, marks, most_telling
from leaf_diffusion.reports.images import data_uri
from leaf_diffusion.reports.metrics import attack_notes
from leaf_diffusion.reports.results import METRICS, Estimate, Metric, Results, Setting, sample_said
from leaf_diffusion.reports.verdicts import verdict
from leaf_diffusion.text.visible import isolated

_MARKUP = 900  # bytes of HTML around an image


@dataclass(frozen=True)
class Cell:
    """text with a smaller line under it; tone: good, bad or ""; bar: (low, mean, high) in percent of the cell's width."""

    text: str = "–"
    sub: str = ""
    tone: str = ""
    bar: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Matrix:
    """One metric: a line a setting, a column an encoder or a pair of encoders."""

    title: str
    meaning: str
    columns: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Cell], str]]
    notes: Sequence[str] = field(default=())


def means(results: Results, key: str) -> Matrix:
    """A metric of every encoder in every setting."""
    metric = METRICS[key]
    lines = []
    for setting in results.settings_of(key):
        rows = [results.get(label, setting, key) for label in results.encoders]
        if any(rows):
            lines.append((setting.label, [mean_cell(row, metric) for row in rows], sample_said(rows)))
    floor = results.floor if key == "drift" else None
    notes = (
        [f"Another noise and no attack at all: {metric.show(floor.mean)} ({sample_said([floor])})."] if floor else []
    )
    return Matrix(
        metric.title, metric.meaning, results.encoders, lines, attack_notes(results.rows_of(key), metric) + notes
    )


def differences(results: Results, key: str) -> Matrix:
    """Paired differences of a metric, encoder minus baseline, the first encoder's first."""
    metric = METRICS[key]
    found = results.rows_of(key, paired=True)
    pairs = list(dict.fromkeys((row.encoder, row.baseline) for row in found if row.baseline))
    order = {pair: i for i, pair in enumerate(combinations(results.encoders, 2))}
    pairs.sort(key=lambda pair: order.get((pair[1], pair[0]), order.get(pair, len(order))))
    lines = []
    for setting in results.settings_of(key):
        rows = [results.get(encoder, setting, key, baseline) for encoder, baseline in pairs]
        if any(rows):
            lines.append((setting.label, [difference_cell(row, metric) for row in rows], sample_said(rows)))
    unit = ", in points" if metric.unit == "%" else ""
    columns = [f"{isolated(a)} − {isolated(b)}" for a, b in pairs]
    return Matrix(metric.title + unit, metric.meaning, columns, lines, attack_notes(found, metric))


def mean_cell(row: Estimate | None, metric: Metric) -> Cell:
    """A mean with its interval, as a table shows it."""
    if row is None:
        return Cell()
    bar = None
    if metric.unit == "%" and row.mean is not None and row.ci_low is not None and row.ci_high is not None:
        bar = (100 * row.ci_low, 100 * row.mean, 100 * row.ci_high)
    return Cell(metric.show(row.mean), metric.show_interval(row), bar=bar)


def difference_cell(row: Estimate | None, metric: Metric) -> Cell:
    """A difference with its interval, toned where it holds."""
    if row is None:
        return Cell()
    said = verdict(row, metric)
    interval = metric.show_interval(row) + (", exploratory" if said == "exploratory" else "")
    return Cell(metric.show_difference(row.mean), interval, {"better": "good", "worse": "bad"}.get(said, ""))


@dataclass(frozen=True)
class ShownImage:
    """An image as the templates show it. uri: "" for one that is missing; marks: the edits of its prompt; given: what the
    encoder read, where that is another text."""

    encoder: str
    label: str
    uri: str
    pixelated: bool
    verdict: str = ""
    """ "right", "wrong" or nothing."""
    numbers: str = ""
    prompt: str = ""
    marks: Sequence[tuple[str, str]] = ()
    shattered: Sequence[Sequence[str]] = ()
    given: str | None = None


@dataclass(frozen=True)
class TellingLine:
    """An encoder's clean and attacked image of a prompt."""

    encoder: str
    clean: ShownImage | None
    attacked: ShownImage | None


@dataclass(frozen=True)
class Telling:
    """A prompt and what the encoders make of it."""

    prompt: str
    lines: Sequence[TellingLine]


@dataclass(frozen=True)
class Column:
    """A setting; shared: an image whose prompt stands at the head of the column, as all encoders were given it."""

    label: str
    shared: ShownImage | None


@dataclass(frozen=True)
class ShownRow:
    """A prompt of the gallery: a line an encoder, a column a setting; kind: see `_kind`; places: its place in each order."""

    prompt: str
    columns: Sequence[Column]
    lines: Sequence[tuple[str, Sequence[ShownImage | None]]]
    kind: str
    places: Mapping[str, int]


def image(cell: GalleryCell | None, original: str) -> ShownImage | None:
    """A gallery cell for the template; None where that encoder has no such image."""
    if cell is None:
        return None
    uri, pixelated = data_uri(cell.image) if cell.image is not None else ("", False)
    numbers = [("CLIPScore", cell.clip_score, 1), ("drift", cell.drift, 3)]
    return ShownImage(
        cell.encoder,
        cell.setting.label,
        uri,
        pixelated,
        verdict={True: "right", False: "wrong", None: ""}[cell.correct],
        numbers=", ".join(f"{name} {value:.{digits}f}" for name, value, digits in numbers if value is not None),
        prompt=cell.prompt,
        marks=marks(original, cell.prompt) if cell.setting.k else [],
        shattered=cell.shattered if cell.setting.k else (),
        given=cell.given if cell.given != cell.prompt else None,
    )


def telling(rows: Sequence[GalleryRow], results: Results, limit: int = 4) -> list[Telling]:
    """The prompts on which the robust encoder gains most over the baseline: 2 x 2 images each."""
    focus, labels = results.focus, [label for label in (results.baseline, results.robust) if label]
    if focus is None:
        return []
    found = []
    for row in most_telling(rows, results, limit):
        cells = [[image(row.cells.get((label, s)), row.prompt) for s in (Setting("clean"), focus)] for label in labels]
        lines = [TellingLine(label, *pair) for label, pair in zip(labels, cells, strict=True)]
        found.append(Telling(row.prompt, lines))
    return found


def gallery(rows: Sequence[GalleryRow], results: Results, budget: int) -> tuple[list[ShownRow], int]:
    """Rows for the template while they fit into `budget` bytes, and how many prompts were left out.

    A line an encoder, a column a setting of `gallery_settings`.
    """
    settings = gallery_settings(results)
    shown: list[ShownRow] = []
    for row in rows:
        lines = [
            (label, [image(row.cells.get((label, s)), row.prompt) for s in settings]) for label in results.encoders
        ]
        columns = []
        for index, setting in enumerate(settings):
            found = next((cells[index] for _, cells in lines if cells[index]), None)
            columns.append(Column(setting.label, found if setting.protocol == "transfer" else None))
        budget -= sum(len(cell.uri) + _MARKUP for _, cells in lines for cell in cells if cell)
        if budget < 0:
            break
        lines = [(label, cells) for label, cells in lines if any(cells)]
        shown.append(ShownRow(row.prompt, columns, lines, _kind(row, results), {}))
    orders = gallery_orders(rows[: len(shown)], results)
    placed = [
        replace(one, places={name: places[number] for name, places in orders.items()})
        for number, one in enumerate(shown)
    ]
    return placed, len(rows) - len(shown)


def gallery_orders(rows: Sequence[GalleryRow], results: Results) -> dict[str, list[int]]:
    """The place of each row in every order that the gallery can be read in."""
    orders: dict[str, list[GalleryRow]] = {"loss": list(rows)}
    robust, focus = results.robust, results.focus
    if robust and focus:
        orders["gain"] = sorted(rows, key=lambda row: row.gain(robust, results.baseline, focus), reverse=True)
    orders["given"] = sorted(rows, key=lambda row: row.number)
    where = {name: {row.prompt_id: i for i, row in enumerate(order)} for name, order in orders.items()}
    return {name: [places[row.prompt_id] for row in rows] for name, places in where.items()}


def _kind(row: GalleryRow, results: Results) -> str:
    """What became of the prompt in the focus setting: "saved" (right with the robust encoder alone), "lost" (wrong with
    it), "both" (right with the baseline, too), "" where nobody judged."""
    robust, focus = results.robust, results.focus
    if robust is None or focus is None:
        return ""
    mine, theirs = row.cells.get((robust, focus)), row.cells.get((results.baseline, focus))
    if mine is None or theirs is None or mine.correct is None or theirs.correct is None:
        return ""
    return "lost" if not mine.correct else "both" if theirs.correct else "saved"


def gallery_settings(results: Results) -> list[Setting]:
    """Clean, each encoder attacked on itself, the attacks found on the baseline (else all): the same prompts for all."""
    clean = Setting("clean")  # drawn in every run, also where nothing measures it
    every = [clean, *(s for s in results.settings if s != clean)]
    settings = [s for s in every if s.protocol != "transfer" or s.source == results.baseline]
    return settings if any(s.protocol == "transfer" for s in settings) else every
