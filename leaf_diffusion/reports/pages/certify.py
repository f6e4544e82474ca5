"""The page and the table of `leaf-diffusion certify`: views of its certificates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from leaf_diffusion.reports.gallery import marks
from leaf_diffusion.reports.html import templates
from leaf_diffusion.runs.certificates import Certificate, summary
from leaf_diffusion.runs.files import atomic_write
from leaf_diffusion.text.visible import isolated

SHOWN = 12
"""What a prompt's edits are read as that the page names, those of most edits first."""


def certificates_table(found: Sequence[Certificate], rows: int) -> Table:
    """The prompts with most edits left first; 0 rows are all."""
    ordered = sorted(found, key=lambda each: each.undone - each.edits)
    shown = ordered[: rows or None]
    caption = f"{len(shown)} of {len(found)} prompts" if len(shown) < len(found) else None
    table = Table(title="prompts by edits that are left", box=SIMPLE_HEAD, title_justify="left", caption=caption)
    for column in ("edits", "undone", "left"):
        table.add_column(column, justify="right")
    table.add_column("prompt")
    table.add_column("one that is left is read as")
    for each in shown:
        share = f"{100 * each.undone / each.edits:.2f}%" if each.edits else "–"
        read = each.left[0].read if each.left else "certified" if each.certified else "–"
        table.add_row(
            f"{each.edits:,}", share, f"{each.edits - each.undone:,}", escape(isolated(each.prompt)),
            escape(isolated(read)),
        )  # fmt: skip
    return table


def write_certificates_page(path: Path, found: Sequence[Certificate], encoder: str, constraint: str) -> Path:
    """Write the page and return its path: for each prompt what its edits are read as. Raises RunFolderError."""
    ordered = sorted(found, key=lambda each: (each.undone - each.edits, each.prompt))
    prompts = [
        {
            "prompt": each.prompt,
            "reads": each.reads,
            "certified": each.certified,
            "edits": each.edits,
            "undone": each.undone,
            "left": [(left.read, left.edits, marks(each.prompt, left.edit)) for left in each.left[:SHOWN]],
            "more": len(each.left[SHOWN:]),
        }
        for each in ordered
    ]
    facts = {
        "encoder": encoder,
        "allowed edits": constraint,
        "k": str(found[0].k) if found else "1",
        "prompts": str(len(found)),
    }
    page = templates().get_template("certify.html.j2")
    atomic_write(path, page.render(headline=summary(found), facts=facts, prompts=prompts).encode())
    return path
