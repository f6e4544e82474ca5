"""`leaf-diffusion attack`: attacked prompts for a text file of prompts, as a JSONL attack set and a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from leaf_diffusion.attacks import AttackResult
from leaf_diffusion.command_line import parse, run_command
from leaf_diffusion.evaluation.attack_options import AttackPromptsOptions
from leaf_diffusion.evaluation.attack_sets import attack_summary, attack_table, attacked_text, write_attacks
from leaf_diffusion.evaluation.options import check_edits
from leaf_diffusion.runs.files import explained, probe
from leaf_diffusion.runs.scheduler import chunks
from leaf_diffusion.text.visible import isolated

AT_ONCE = 8


def attack_prompts(options: AttackPromptsOptions, console: Console) -> dict[int, list[AttackResult]]:
    """k -> the attacked prompts; the attack set is written where the options name a file."""
    if options.prompts is None:
        raise ValueError("--prompts FILE is needed: the prompts to attack, one a line")
    prompts = [each.text for each in options.read(options.prompts)]
    check_edits(options.k, options.attack, prompts)
    if options.output is not None:  # an hour's search must not end at a folder that cannot be written
        with explained(options.output.parent, "creating"):
            options.output.parent.mkdir(parents=True, exist_ok=True)
        probe(options.output.parent)
    (scorer, fingerprint), label = options.loaded(), options.label
    found: dict[int, list[AttackResult]] = {k: [] for k in options.k}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(f"attacking {escape(isolated(label))}", total=len(prompts))
        for chunk in chunks(prompts, AT_ONCE):
            results = options.attack.path(chunk, scorer, options.k, constraint=options.rule(), seed=options.seed)
            for k in options.k:
                found[k] += results[k]
            progress.advance(task, len(chunk))
    if options.output is not None:
        place, more = (options.attack.label, options.constraint), {"fingerprint": fingerprint}
        rows = [attacked_text(one, label, k, *place).model_copy(update=more) for k in options.k for one in found[k]]
        write_attacks(options.output, rows)
        console.print(f"attack set: {escape(str(options.output))} ({len(rows)} attacked prompts)", soft_wrap=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Attack the prompts of a file; returns the exit status."""

    def work(words: Sequence[str]) -> int:
        options, console = parse(AttackPromptsOptions, words, command="attack"), Console()
        label = escape(isolated(options.label))
        for k, results in attack_prompts(options, console).items():
            title = f"{options.attack.label} on {label}, k={k}, {options.constraint}"
            console.print(attack_table(results, title, options.rows))
            console.print(attack_summary(results))
        return 0

    return run_command("attack", work, argv)


if __name__ == "__main__":
    sys.exit(main())
