"""Results for the terminal, within 100 columns."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from leaf_diffusion.reports.metrics import attack_notes
from leaf_diffusion.reports.results import Results, Setting, sample_said
from leaf_diffusion.text.visible import isolated


def results_table(results: Results) -> Table:
    """The main metric: one line a setting, one column an encoder, each mean with its 95% interval over prompts."""
    metric = results.main
    if metric is None:
        return Table(title="no images were measured")
    table = Table(
        title=f"{metric.title}: mean and 95% interval over prompts",
        box=SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1),
        caption_justify="left",
    )
    table.add_column("attacked on", no_wrap=True)
    for label in results.encoders:
        table.add_column(escape(isolated(label)), max_width=22)
    table.add_column("n", justify="right")
    for setting in results.settings_of(metric.key):
        rows = [results.get(label, setting, metric.key) for label in results.encoders]
        cells = []
        for row in rows:
            interval = "" if row is None else metric.show_interval(row)
            value = "" if row is None else f"[bold]{metric.show(row.mean)}[/]"
            cells.append(f"{value} [dim]{interval}[/]" if interval else value)
        table.add_row(escape(_short(setting)), *cells, sample_said(rows))
    table.caption = " ".join(attack_notes(results.rows_of(metric.key), metric))
    return table


def _short(setting: Setting) -> str:
    if setting.protocol == "clean":
        return "– (clean)"
    return f"{isolated(setting.source) or 'itself'}, k={setting.k}"
