"""report.html: one file that needs no network and runs no script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from leaf_diffusion.metrics.bounds import under_attack
from leaf_diffusion.reports import costs, sections
from leaf_diffusion.reports.gallery import gallery_rows
from leaf_diffusion.reports.headline import headline
from leaf_diffusion.reports.plots import plot_over_k
from leaf_diffusion.reports.results import METRICS, PAIRED, REPORT, SETS, Results
from leaf_diffusion.reports.uncounted import uncounted
from leaf_diffusion.reports.untrusted import finalize, prompt
from leaf_diffusion.reports.verdicts import COLOURED
from leaf_diffusion.runs import Run, atomic_write, load_run
from leaf_diffusion.runs.records import ScoreRecord
from leaf_diffusion.runs.results import EvaluationResults
from leaf_diffusion.text.visible import isolated

MAX_BYTES = 15_000_000
_RESERVED = 2_500_000  # tables, plots and markup beside the gallery's images


def write_report(run: Run | str | Path) -> Path:
    """Write <run folder>/report.html, smaller than 15 MB, and return its path. Nothing is computed but the layout.

    Raises FileNotFoundError for no run folder, ValueError for a run without results, RunFolderError when it cannot be
    written.
    """
    run = run if isinstance(run, Run) else load_run(run)
    path = run.folder / REPORT
    atomic_write(path, render(run).encode())
    return path


def render(run: Run) -> str:
    """The report's HTML."""
    return templates().get_template("report.html.j2").render(_values(run, MAX_BYTES - _RESERVED))


@cache
def templates() -> Environment:
    """The page templates; whatever they print is escaped, and what is not seen in it is shown."""
    environment = Environment(
        loader=PackageLoader("leaf_diffusion.reports"),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prompt"] = prompt
    environment.globals |= {"coloured": COLOURED, "under_attack": under_attack}
    return environment


def _values(run: Run, budget: int) -> dict[str, object]:
    found, results = run.read_results(EvaluationResults), Results.of(run)
    rows = gallery_rows(run, baseline=results.baseline)
    spec = json.dumps(run.spec.settings, indent=2, ensure_ascii=False)
    shown, left_out = sections.gallery(rows, results, budget - len(spec.encode()))
    main, swap = results.main, found.swap_cost
    own_costs = costs.own_costs(results)
    keys = [key for key in PAIRED if results.has(key)]
    first = [main.key] if main else []
    sources = list(dict.fromkeys(s.source for s in results.settings if s.protocol == "transfer"))
    plotted = [key for key in ("scene_accuracy", "clip_score", "drift") if results.has(key)]
    return {
        "headline": headline(results),
        "declared": results.declared is not None,
        "encoders": results.encoders,
        "robust": results.robust,
        "baseline": results.baseline,
        "focus": results.focus,
        "facts": _facts(results, len(rows), run.spec.settings),
        "telling": sections.telling(rows, results),
        "main": [sections.means(results, key) for key in first],
        "main_differences": [sections.differences(results, key) for key in first],
        "means": [sections.means(results, key) for key in keys if key not in first],
        "differences": [sections.differences(results, key) for key in keys if key not in first],
        "sensitivity": [] if own_costs or not results.has("sensitivity") else [sections.means(results, "sensitivity")],
        "costs": [*own_costs, *(costs.condition_costs(swap, results) if swap else [])],
        "sensitivity_meaning": METRICS["sensitivity"].meaning if results.has("sensitivity") else "",
        "swap_cost": costs.told(swap),
        "plots": [
            (METRICS[key].title, [(title, Markup(svg)) for title, svg in plot_over_k(results, key, sources)])
            for key in plotted
        ],
        "sets": [(sections.means(results, key), results.space(key)) for key in SETS if results.has(key)],
        "real_images": found.real_images,
        "not_measured": [isolated(sentence) for sentence in found.left_out],
        "attacks": found.attacks,
        "uncounted": uncounted(rows, results, found.counts, run.records("scores", ScoreRecord)),
        "gallery": shown,
        "gallery_columns": [setting.label for setting in sections.gallery_settings(results)],
        "left_out": left_out,
        "unshown": [
            source for source in sources if source not in {s.source for s in sections.gallery_settings(results)}
        ],
        "command": run.environment.get("command", "not recorded"),
        "environment": json.dumps(run.environment, indent=2, ensure_ascii=False),
        "spec": spec,
        "identity": run.spec.identity,
        "has_floor": results.floor is not None,
        "has_speller": any("+speller" in label for label in results.encoders),
        "has_transfer": bool(sources),
    }


def _facts(results: Results, prompts: int, settings: Mapping[str, object]) -> list[tuple[str, str]]:
    attacked = next((row for row in results.rows if row.attack), None)
    facts = [("prompts", str(prompts)), ("noises a prompt", str(max(row.seeds for row in results.rows)))]
    if attacked is not None:
        facts += [("attack", str(attacked.attack)), ("constraint", str(attacked.constraint))]
    if "pipeline" in settings:
        facts.append(("pipeline", str(settings["pipeline"])))
    return facts
