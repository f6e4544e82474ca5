"""`leaf-diffusion attack`: attacked prompts for a text file of prompts, as a JSONL attack set and a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from leaf_diffusion.attacks import AttackResult
from leaf_diffusion.command_line import parse, run_command
from leaf_diffusion.encoders.base import Feature, Hidden, TextEncoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.evaluation.attack_sets import attack_summary, attack_table, attacked_text, write_attacks
from leaf_diffusion.evaluation.encoders import EncoderName
from leaf_diffusion.evaluation.options import AttackOptions, PromptOptions, check_edits, resolve_device
from leaf_diffusion.runs.files import explained, probe
from leaf_diffusion.runs.scheduler import chunks
from leaf_diffusion.scoring.objectives import Drift
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.visible import isolated

AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class AttackPromptsOptions(AttackOptions, PromptOptions):
    """Find the worst prompts within k character edits of those in a file, on one text encoder."""

    help_group: ClassVar[str] = "the command"
    help_first: ClassVar[tuple[str, ...]] = ("prompts", "encoder", "attack", "k", "output")

    encoder: str = "world:original"
    """A source ("world:leaf", a folder, a Hub id) or LABEL=SOURCE; "+speller" puts spelling correction before it."""
    k: tuple[int, ...] = (1,)
    """Numbers of edits: of characters, or what the attack counts (slips, tokens, words)."""
    output: Path | None = None
    """The attack set (JSONL), which `leaf-diffusion evaluate --attacked-prompts` reads."""
    device: str = "auto"
    """auto (a GPU where there is one, else the CPU), cpu, cuda, cuda:1, mps."""
    rows: int = 20
    """Rows of the table, the strongest attacks first; 0 for all."""
    config: Path | None = None
    """A YAML file with any of these options (underscores in names); the command line goes over it."""

    def attacked(self, encoder: TextEncoder) -> Feature:
        """What of the embedding the attack moves."""
        if self.feature == "states":
            return Hidden(-1, "all")
        if self.feature == "auto":
            return "projected" if encoder.has_projection else "pooled"
        if self.feature == "projected":
            encoder.require_projection()
        return self.feature


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
    name = EncoderName.parse(options.encoder, world=True)
    encoder = load_text_encoder(name.source, defence=name.defence, device=resolve_device(options.device))
    scorer = Scorer(encoder, Drift(options.objective, feature=options.attacked(encoder)), precision=options.precision)
    found: dict[int, list[AttackResult]] = {k: [] for k in options.k}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(f"attacking {escape(isolated(name.label))}", total=len(prompts))
        for chunk in chunks(prompts, AT_ONCE):
            results = options.attack.path(chunk, scorer, options.k, constraint=options.rule(), seed=options.seed)
            for k in options.k:
                found[k] += results[k]
            progress.advance(task, len(chunk))
    if options.output is not None:
        place, more = (options.attack.label, options.constraint), {"fingerprint": encoder.fingerprint}
        rows = [
            attacked_text(one, name.label, k, *place).model_copy(update=more) for k in options.k for one in found[k]
        ]
        write_attacks(options.output, rows)
        console.print(f"attack set: {escape(str(options.output))} ({len(rows)} attacked prompts)", soft_wrap=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Attack the prompts of a file; returns the exit status."""

    def work(words: Sequence[str]) -> int:
        options, console = parse(AttackPromptsOptions, words, command="attack"), Console()
        label = escape(isolated(EncoderName.parse(options.encoder, world=True).label))
        for k, results in attack_prompts(options, console).items():
            title = f"{options.attack.label} on {label}, k={k}, {options.constraint}"
            console.print(attack_table(results, title, options.rows))
            console.print(attack_summary(results))
        return 0

    return run_command("attack", work, argv)


if __name__ == "__main__":
    sys.exit(main())
