"""Inline SVG plots over k: text stays text, colours are CSS variables, so the page's dark mode reaches them."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from leaf_diffusion.reports.results import METRICS, Metric, Results, Setting
from leaf_diffusion.runs import ResultRow

MARKERS = "osD^vPX"
_INK, _FAINT = "#010203", "#040506"  # stand-ins, replaced by CSS variables
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
}


def plot_over_k(
    results: Results, metric_key: str, sources: Sequence[str], *, width: float = 2.9
) -> list[tuple[str, str]]:
    """(title, SVG) of a metric over k: first adaptive attacks, then one panel a source; empty where there is no data.

    The panels of a metric share their y axis. Lines carry 95% intervals; drift has the other-noise floor, dashed.
    """
    metric = METRICS[metric_key]
    panels = [("Each encoder attacked on itself", "adaptive", "")]
    panels += [(f"Attacks found on “{source}”", "transfer", source) for source in sources]
    drawn: list[tuple[str, str]] = []
    limits = _limits(results, metric)
    for title, protocol, source in panels:
        lines = {label: _line(results, label, metric, protocol, source) for label in results.encoders}
        if any(point[0] > 0 for line in lines.values() for point in line):
            drawn.append(
                (title, _panel(results, metric, lines, limits, f"{metric_key}-{protocol}-{len(drawn)}", width))
            )
    return drawn


Point = tuple[float, float, float, float]
"""(x, mean, low, high)"""


def point(x: float, row: ResultRow, metric: Metric) -> list[Point]:
    """Of a row at `x`, scaled; empty without a mean. Without an interval its ends are the mean."""
    if row.mean is None:
        return []
    ends = (row.mean, row.mean if row.ci_low is None else row.ci_low, row.mean if row.ci_high is None else row.ci_high)
    mean, low, high = (end * metric.scale for end in ends)
    return [(x, mean, low, high)]


def _line(results: Results, label: str, metric: Metric, protocol: str, source: str) -> list[Point]:
    """Over k; k = 0 is the clean image."""
    points: list[Point] = []
    for k in [0, *results.ks]:
        row = results.get(label, Setting(protocol, source, k) if k else Setting("clean"), metric.key)
        if row is not None:
            points += point(k, row, metric)
    return points


def _limits(results: Results, metric: Metric) -> tuple[float, float]:
    if metric.unit == "%":
        return (-3, 103)
    rows = [r for r in results.rows if r.metric == metric.key and r.baseline is None and r.mean is not None]
    ends = [value for r in rows for value in (r.mean, r.ci_low, r.ci_high) if value is not None]
    low, high = min(ends), max(ends)
    pad = 0.08 * (high - low or abs(high) or 1)
    return (0 if not metric.higher_is_better else low - pad, high + pad)


def _panel(
    results: Results,
    metric: Metric,
    lines: dict[str, list[Point]],
    limits: tuple[float, float],
    name: str,
    width: float,
) -> str:
    ks = [0, *results.ks] if metric.higher_is_better else results.ks
    return panel(
        lines,
        name,
        xlabel="edited characters k",
        ylabel=f"{metric.title}{' (%)' if metric.unit == '%' else ''}",
        limits=limits,
        ticks={k: "0 (clean)" if k == 0 else str(k) for k in ks},
        floor=results.floor.mean if metric.key == "drift" and results.floor is not None else None,
        width=width,
    )


def panel(
    lines: Mapping[str, Sequence[Point]],
    name: str,
    *,
    xlabel: str,
    ylabel: str,
    limits: tuple[float, float] | None = None,
    ticks: Mapping[int, str] | None = None,
    floor: float | None = None,
    logarithmic: bool = False,
    width: float = 2.9,
) -> str:
    """SVG of lines with intervals, an encoder each, for an HTML page; `name` makes its ids unique there.

    ticks: the whole numbers on the x axis; floor: a dashed line; logarithmic: of the x axis.
    """
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width, width * 0.72), layout="constrained")
        axis = figure.subplots()
        for index, line in enumerate(lines.values()):
            if not line:
                continue
            xs, means, lows, highs = (list(column) for column in zip(*line, strict=True))
            # intervals of several encoders stay readable
            shift = 0.0 if logarithmic else (index - (len(lines) - 1) / 2) * 0.05
            where = [x + shift for x in xs]
            errors = [
                [max(mean - low, 0) for mean, low in zip(means, lows, strict=True)],
                [max(high - mean, 0) for mean, high in zip(means, highs, strict=True)],
            ]
            marker = MARKERS[index % len(MARKERS)]
            axis.errorbar(
                where, means, yerr=errors, color=stand_in(index), marker=marker, markersize=5, linewidth=1.6,
                elinewidth=1, zorder=3,
            )  # fmt: skip
        if floor is not None:
            axis.axhline(floor, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        if logarithmic:
            axis.set_xscale("log")
        if ticks is not None:
            axis.set(xticks=list(ticks), xlim=(min(ticks) - 0.3, max(ticks) + 0.3))
            axis.set_xticklabels(list(ticks.values()))
        axis.set(xlabel=xlabel, ylabel=ylabel)
        if limits is not None:
            axis.set_ylim(limits)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name)


def stand_in(index: int) -> str:
    """A colour that stands for encoder `index` until it becomes a CSS variable."""
    return f"#0a0b{index % 7 + 16:02x}"


def _inline(svg: str, name: str) -> str:
    """An <svg> element for an HTML page: ids made unique, colours made variables, size left to the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"#0a0b([0-9a-f]{2})", lambda m: f"var(--e{int(m[1], 16) - 16})", svg)
    svg = svg.replace(_INK, "currentColor").replace(_FAINT, "var(--line)")
    svg = re.sub(r'<svg ([^>]*?)(?:width|height)="[^"]*pt"', r"<svg \1", svg)
    svg = re.sub(r'(<svg [^>]*?)(?:width|height)="[^"]*pt"', r"\1", svg)
    return re.sub(r"font: ([\d.]+)px[^;\"]*", r"font-size: \1px", svg)
