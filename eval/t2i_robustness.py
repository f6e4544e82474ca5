"""Do attacked prompts still give the right pictures? Prompts x encoders x k x noises, and a report.

Paper: section 4, text-to-image (adaptive attacks); the transfer protocols, the paired noise and the intervals are ours.
Runs as `leaf-diffusion evaluate` and as `python eval/t2i_robustness.py`; --help lists the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from leaf_diffusion.eval.generate import attack_all, draw_all
from leaf_diffusion.eval.judges import load_judges
from leaf_diffusion.eval.options import parse
from leaf_diffusion.eval.prompts import write_attacks
from leaf_diffusion.eval.score import score_all
from leaf_diffusion.eval.setup import prepare
from leaf_diffusion.eval.show import Bars, print_plan, print_summary
from leaf_diffusion.eval.specification import open_store
from leaf_diffusion.eval.summarise import summarise
from leaf_diffusion.reports import write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Run, or continue, one evaluation; returns the exit status (2: the input is wrong, nothing was started)."""
    console = Console()
    try:
        options = parse(argv)
        with console.status("loading and checking"):
            setup = prepare(options)
            judges = load_judges(options)
            store = open_store(setup, judges, argv)
    except (ValueError, OSError) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return 2
    print_plan(console, setup, judges, store)
    with Bars(console, setup, store) as bars:
        attacked = attack_all(setup, store, bars.attacks)
        if options.save_attacked_prompts is not None:
            write_attacks(options.save_attacked_prompts, store.records("attacks"))
        draw_all(setup, store, attacked, bars.pictures)
        score_all(setup, judges, store, bars.scores)
        results = summarise(setup, judges, store)
    report = write_report(store.folder)
    print_summary(console, results, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
