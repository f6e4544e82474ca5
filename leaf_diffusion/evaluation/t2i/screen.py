"""What the terminal shows: the plan, three progress bars, the summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from leaf_diffusion.evaluation.t2i.judges import Judges
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.runs import RunStore
from leaf_diffusion.text.visible import isolated


def totals(setup: Setup) -> dict[str, int]:
    """Units of each kind in the whole run."""
    images = sum(1 for _ in setup.plan.images())
    return {"attacks": len(setup.plan.sets()) * len(setup.plan.prompts), "images": images, "scores": images}


def print_plan(console: Console, setup: Setup, judges: Judges, store: RunStore | None) -> None:
    """What will be done, and what is there already."""
    options, plan, units = setup.options, setup.plan, totals(setup)
    console.print(
        f"{len(plan.prompts)} prompts, encoders {_names(setup.encoders)}; "
        f"attacks ({options.attack.label}, {options.constraint}) on {_names(plan.sources) or 'none'}: "
        f"{units['attacks']}; images: {units['images']}",
        soft_wrap=True,
        highlight=False,
    )
    done = {name: 0 if store is None else store.count(name) for name in units}
    if any(done.values()):
        console.print(
            "continuing: " + ", ".join(f"{done[n]} of {units[n]} {n}" for n in units) + " are there", highlight=False
        )
    if store is not None and store.torn:
        torn = ", ".join(f"{kind} ({size:,} bytes)" for kind, size in store.torn.items())
        console.print(f"[yellow]torn by a crash and computed again: the last record of {torn}[/]", soft_wrap=True)
    if judges.clip is None:
        console.print("[yellow]no --clip-score-model: CLIPScore and CMMD are left out[/]")
    spaces = judges.spaces()
    if "frechet" in spaces:
        missing = escape("; ".join(judges.missing))
        said = f"KID and Frechet distance to {len(judges.real)} images, features: {escape(spaces['frechet'][0])}"
        console.print(f"{said}[yellow]{' - ' if missing else ''}{missing}[/]", soft_wrap=True, highlight=False)
    elif options.real_images is None:
        console.print("[yellow]no --real-images: KID, CMMD and Frechet distance are left out[/]")
    else:
        missing = escape("; ".join(["no --clip-score-model", *judges.missing]))
        console.print(f"[yellow]{missing}: KID and Frechet distance are left out[/]", soft_wrap=True, highlight=False)
    if all(prompt.scene is None for prompt in plan.prompts):
        console.print("scene accuracy needs the world's own prompts: left out")


def print_summary(console: Console, results: dict[str, Any], report: Path) -> None:
    """The main figures of each encoder, and its paired differences to the first."""
    rows = results["rows"]
    metric = "scene_accuracy" if any(row["metric"] == "scene_accuracy" for row in rows) else "clip_score"
    if not any(row["metric"] == metric for row in rows):
        metric = "drift"
    console.print(_table(rows, metric))
    for counts in results["attacks"]:
        unseen = (
            ""
            if counts["unseen_tokens"] is None
            else f", {counts['unseen_tokens']:.0%} of the tokens never seen in training"
        )
        console.print(
            f"attacks on {_names([counts['source']])}, k={counts['k']}: {counts['n']} prompts, "
            f"{counts['unchanged']} unchanged, {counts['truncated']} truncated{unseen}",
            soft_wrap=True,
            highlight=False,
        )
    console.print(f"report: {report}", soft_wrap=True, highlight=False)


def _table(rows: Sequence[dict[str, Any]], metric: str) -> Table:
    left_out = ("floor", "clean") if metric == "drift" else ("floor",)  # a swap's drift is no attack's
    mine = [row for row in rows if row["metric"] == metric and row["protocol"] not in left_out]
    encoders = list(dict.fromkeys(row["encoder"] for row in mine))
    digits = 1 if metric == "clip_score" else 2
    title = (
        f"{metric.replace('_', ' ')}, and the difference to {_names(encoders[:1])} with its 95% interval over prompts"
    )
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1), show_lines=False)
    for column in ("prompts", *map(isolated, encoders)):
        table.add_column(escape(column))
    cells: dict[str, dict[str, str]] = {}
    for row in mine:
        where = {"clean": "clean", "adaptive": "attacked on itself"}.get(
            row["protocol"], f"attacked on {isolated(row['source'] or '')}"
        )
        line = cells.setdefault(where + (f", k={row['k']}" if row["k"] else ""), dict.fromkeys(encoders, ""))
        mean, low, high = (f"{row[name]:.{digits}f}" for name in ("mean", "ci_low", "ci_high"))
        if row["baseline"] is None:
            line[row["encoder"]] = mean
        elif row["baseline"] == encoders[0]:  # differences follow the means in the rows
            interval = f" \\[{low}, {high}]" if row["n"] > 1 else ""  # one prompt shows no spread
            line[row["encoder"]] += f"\n{row['mean']:+.{digits}f}{interval}"
    for where, line in cells.items():
        table.add_row(escape(where), *line.values())
    return table


def _names(labels: Iterable[str]) -> str:
    return escape(", ".join(map(isolated, labels)))
