"""Do attacked prompts still give the right images? Prompts x encoders x k x noises, and a report.

Paper: section 4, text-to-image (adaptive attacks); the transfer protocols, the paired noise and the intervals are ours.
Runs as `leaf-diffusion evaluate` and as `python eval/t2i_robustness.py`; --help lists the options.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from leaf_diffusion.evaluation.folders import check_space
from leaf_diffusion.evaluation.prompts import write_attacks
from leaf_diffusion.evaluation.strict import strict
from leaf_diffusion.evaluation.t2i.attack import attack_all
from leaf_diffusion.evaluation.t2i.dry_run import dry_run
from leaf_diffusion.evaluation.t2i.generate import draw_all
from leaf_diffusion.evaluation.t2i.judges import load_judges
from leaf_diffusion.evaluation.t2i.options import Options, parse
from leaf_diffusion.evaluation.t2i.score import score_all
from leaf_diffusion.evaluation.t2i.screen import print_plan, print_summary, totals
from leaf_diffusion.evaluation.t2i.setup import image_bytes, prepare
from leaf_diffusion.evaluation.t2i.specification import open_store, swap_costs
from leaf_diffusion.evaluation.t2i.summarise import in_order, summarise
from leaf_diffusion.evaluation.terminal import Bars, quiet
from leaf_diffusion.reports import write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Run, or continue, one evaluation; returns the exit status (2: the input is wrong, nothing was started)."""
    console = Console(quiet=int(os.environ.get("RANK", "0")) > 0)  # of a launcher's processes the first one speaks
    quiet()
    try:
        options = parse(argv)
    except (ValueError, OSError) as error:
        return _refused(error)
    with strict(options.strict):
        return _run(console, options, argv)


def _run(console: Console, options: Options, argv: Sequence[str] | None) -> int:
    try:
        with console.status("loading and checking"):
            setup = prepare(options)
            check_space((options.output or Path("runs")).absolute(), image_bytes(setup))
            judges = load_judges(options)
            costs = None if options.swap_cost is None else swap_costs(options.swap_cost, setup)
            store = None if options.dry_run else open_store(setup, judges, argv)
    except (ValueError, OSError) as error:
        return _refused(error)
    print_plan(console, setup, judges, store)
    if store is None:
        dry_run(console, setup, judges)
        return 0
    try:
        with Bars(console, totals(setup), store) as bars:
            attacked = attack_all(setup, store, bars.start("attacks"))
            if options.save_attacked_prompts is not None and store.slot == 0:
                rows = in_order(store.records("attacks"), setup.plan.attack_ids())
                write_attacks(options.save_attacked_prompts, rows)
            draw_all(setup, store, attacked, bars.start("images"))
            score_all(setup, judges, store, bars.start("scores"))
        if not store.claim("results"):
            console.print(f"all is done; another process writes the results of {store.folder}", soft_wrap=True)
            return 0
        with console.status("intervals, and distances to real images" if judges.real else "intervals"):
            results = summarise(setup, judges, store, costs)
        report = write_report(store.folder)
    except (KeyboardInterrupt, OSError) as error:
        Console().print(
            f"[red]stopped[/] {escape(str(error))}: what is done is kept, the same command continues", soft_wrap=True
        )
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    print_summary(console, results, report)
    return 0


def _refused(error: Exception) -> int:
    Console().print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
    return 2


if __name__ == "__main__":
    sys.exit(main())
