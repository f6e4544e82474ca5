"""Results as Markdown and LaTeX, for a README or a paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from leaf_diffusion.reports.metrics import attack_notes
from leaf_diffusion.reports.results import METRICS, PAIRED, SETS, Results, sample_said
from leaf_diffusion.text.visible import isolated

Line = tuple[str, Sequence[str]]


def markdown(results: Results, keys: Sequence[str] | None = None) -> str:
    """One table a metric: a line a setting, a column an encoder, means with their 95% intervals.

    `keys`: metrics; default: every one that was measured. ValueError for one that was not.
    """
    return "\n".join(_each(results, keys, _markdown_table))


def latex(results: Results, keys: Sequence[str] | None = None) -> str:
    """The same as LaTeX tables (package booktabs)."""
    return "\n".join(["% needs \\usepackage{booktabs}", *_each(results, keys, _latex_table)])


def _each(
    results: Results, keys: Sequence[str] | None, table: Callable[[str, str, Sequence[str], Sequence[Line]], str]
) -> list[str]:
    there = [key for key in (*PAIRED, "sensitivity", *SETS) if results.has(key)]
    if unknown := [key for key in keys or () if key not in there]:
        raise ValueError(f"the run has not measured {', '.join(unknown)}; it has {', '.join(there)}")
    tables = []
    for key in keys or there:
        metric, lines = METRICS[key], list[Line]()
        for setting in results.settings_of(key):
            rows = [results.get(label, setting, key) for label in results.encoders]
            cells = [
                "–" if row is None else f"{metric.show(row.mean)} {_bracketed(metric.show_interval(row))}".strip()
                for row in rows
            ]
            lines.append((setting.label, [*cells, sample_said(rows)]))
        title = metric.title + ("" if metric.higher_is_better else ", lower is better")
        if key in SETS:
            title += f", features: {isolated(results.space(key))}"
        note = " ".join(attack_notes(results.rows_of(key), metric))
        tables.append(table(title, note, [*map(isolated, results.encoders), "n"], lines))
    return tables


def _bracketed(interval: str) -> str:
    return f"[{interval}]" if interval else ""


def _markdown_table(title: str, note: str, columns: Sequence[str], lines: Sequence[Line]) -> str:
    def row(first: str, cells: Sequence[str]) -> str:
        return "| " + " | ".join(_markdown(cell) for cell in (first, *cells)) + " |"

    body = [row(label, cells) for label, cells in lines]
    under = [f"\n{note}"] if note else []
    head = [f"**{_markdown(title)}**\n", row("", columns), "|---" * (len(columns) + 1) + "|"]
    return "\n".join([*head, *body, *under, ""])


def _markdown(text: str) -> str:
    for character in "\\`*_<>|~":  # labels are the user's
        text = text.replace(character, f"\\{character}")
    return " ".join(text.replace("](", "]\\(").split())


def _latex_table(title: str, note: str, columns: Sequence[str], lines: Sequence[Line]) -> str:
    def row(first: str, cells: Sequence[str]) -> str:
        return " & ".join(_latex(cell) for cell in (first, *cells)) + r" \\"

    caption = f"{_latex(title)}: mean and 95\\% interval over prompts{_latex(f'. {note}' if note else '')}"
    begin = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
    begin += [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule", row("", columns), r"\midrule"]
    return "\n".join([*begin, *(row(*line) for line in lines), r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}", "é": r"\'e", "×": r"$\times$", "σ": r"$\sigma$"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in " ".join(text.split()))
