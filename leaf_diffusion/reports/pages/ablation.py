"""The page of `leaf-diffusion ablate`: views of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from leaf_diffusion.reports.metrics import RELATIVE_TEXTFARE, TEXT_ACCURACY
from leaf_diffusion.reports.pages.experiment import Page, Section, curve, matrices, means_said
from leaf_diffusion.runs import ResultRow


def ablation_page(rows: Sequence[ResultRow], labels: Sequence[str], about: str, facts: Mapping[str, str]) -> Page:
    """Every training against the first encoder, and accuracy over k."""
    first = [row for row in rows if row.baseline in (None, labels[0])]
    tables = matrices(first, [TEXT_ACCURACY, RELATIVE_TEXTFARE])
    plot = curve(
        rows, TEXT_ACCURACY, labels, x=lambda row: row.k or 0, xlabel=f"edits k ({facts['attack']})", name="ablation"
    )
    sections = [Section("What each choice buys", about, tables, [(TEXT_ACCURACY.title, plot)])]
    said = means_said([row for row in rows if row.k], RELATIVE_TEXTFARE)
    headline = f"Relative loss under the LEAF attack: {said}"
    return Page("ablation of the finetuning", headline, facts, labels, sections)
