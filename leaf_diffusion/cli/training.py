"""What the three finetuning commands share: where the result goes, on which device, and how a command runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from accelerate import Accelerator
from rich.console import Console

from leaf_diffusion.command_line import parse, run_command
from leaf_diffusion.finetune.processes import process_on


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The same command continues a training that was broken off."""

    help_group: ClassVar[str] = "the command"

    output: Path
    """The folder of what is finetuned."""
    device: str = "auto"
    """auto, cpu or cuda; a launcher (torchrun, accelerate) gives each of its processes a GPU of its own."""
    config: Path | None = None
    """A YAML file with any of these options (underscores in names); the command line goes over it."""


O = TypeVar("O", bound=TrainingOptions)  # noqa: E741


def run_training(
    command: str, options_type: type[O], work: Callable[[O, Accelerator, Console], None], argv: Sequence[str] | None
) -> int:
    """Parse and work; of a launcher's processes only the first one speaks. Returns the exit status."""

    def parsed(words: Sequence[str]) -> int:
        options = parse(options_type, words, command=command)
        process = process_on(options.device)
        work(options, process, Console(quiet=not process.is_main_process))
        return 0

    return run_command(command, parsed, argv)
