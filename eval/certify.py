"""`leaf-diffusion certify`: prompts of which a defence undoes every allowed edit, so that no edit changes their images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from leaf_diffusion.command_line import parse, refuse_idle, run_command
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.evaluation.encoders import EncoderName
from leaf_diffusion.evaluation.options import ConstraintName, PromptOptions
from leaf_diffusion.evaluation.tasks.certify import basis, certify
from leaf_diffusion.reports.pages.certify import certificates_table, write_certificates_page
from leaf_diffusion.runs.certificates import Certificate, read_certificates, summary
from leaf_diffusion.runs.files import append_line, explained, probe
from leaf_diffusion.text.constraints import constraint_from_name
from leaf_diffusion.text.visible import isolated


@dataclass(frozen=True, kw_only=True)
class CertifyOptions(PromptOptions):
    """Read every allowed edit of each prompt, and certify the prompts whose edits are all undone."""

    help_group: ClassVar[str] = "the command"
    help_first: ClassVar[tuple[str, ...]] = ("prompts", "encoder", "output")

    encoder: str = "world:original+canonical"
    """Whose tokenizer reads, and the defence before it: SOURCE+canonical, SOURCE+canonical:FILE with the captions of a file
    (those that one finetunes on), "world:leaf+canonical:world", SOURCE+speller."""
    constraint: ConstraintName = "no-new-words"
    """Which edits are allowed. no-new-words: none that makes an English word that was not there; published: the rule of the
    paper's code."""
    k: int = 1
    """Number of character edits. For more than one so many are drawn at random (`sample`), which refutes certificates and gives
    none."""
    sample: int = 2000
    """Edits drawn a prompt where k is more than 1."""
    seed: int = 0
    """Seed of these draws."""
    output: Path | None = None
    """The certificates, one JSON object a line; the page is written beside it (.html). Where the file has lines already the
    command goes on behind them."""
    rows: int = 20
    """Rows of the table, the prompts with most edits left first; 0 for all."""
    config: Path | None = None
    """A YAML file with any of these options (underscores in names); the command line goes over it."""

    def __post_init__(self) -> None:
        if self.k < 1 or self.sample < 1:
            raise ValueError(f"--{'k' if self.k < 1 else 'sample'} must be at least 1")
        if self.k == 1:
            refuse_idle(self, "belongs to --k above 1", "sample", "seed")


def certificates(options: CertifyOptions, console: Console) -> list[Certificate]:
    """The certificates of the options' prompts, in their order."""
    if options.prompts is None:
        raise ValueError("--prompts FILE is needed: the prompts to certify, one a line")
    prompts = [each.text for each in options.read(options.prompts)]
    name = EncoderName.parse(options.encoder, world=True)
    encoder = load_text_encoder(name.source, defence=name.defence)
    rule, output = constraint_from_name(options.constraint), options.output
    known = dict[str, Certificate]()
    if output is not None:
        with explained(output.parent, "creating"):
            output.parent.mkdir(parents=True, exist_ok=True)
        probe(output.parent)
        if output.exists():
            expected = basis(encoder, rule, options.k, options.sample, options.seed)
            known = {each.prompt: each for each in read_certificates(output, expected)}
    label = escape(isolated(name.label))
    for prompt in track(
        [each for each in prompts if each not in known], f"reading every edit, {label}", console=console
    ):
        known[prompt] = certify(encoder, prompt, rule, options.k, sample=options.sample, seed=options.seed)
        if output is not None:
            append_line(output, known[prompt].model_dump_json())
    found = [known[prompt] for prompt in prompts]
    if output is not None:
        page = write_certificates_page(output.with_suffix(".html"), found, name.label, options.constraint)
        console.print(f"certificates: {escape(str(output))}; page: {escape(str(page))}", soft_wrap=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Certify the prompts of a file; returns the exit status."""

    def work(words: Sequence[str]) -> int:
        options, console = parse(CertifyOptions, words, command="certify"), Console()
        found = certificates(options, console)
        console.print(certificates_table(found, options.rows))
        console.print(summary(found))
        return 0

    return run_command("certify", work, argv)


if __name__ == "__main__":
    sys.exit(main())
