"""`leaf-diffusion finetune`: make a text encoder robust."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import tyro
from accelerate import Accelerator
from rich.console import Console

from leaf_diffusion.cli.training import TrainingOptions, run_training
from leaf_diffusion.command_line import refuse_idle
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.finetune.captions import read_caption_file, read_captions
from leaf_diffusion.finetune.config import TextFAREConfig
from leaf_diffusion.finetune.textfare import finetune_text_encoder


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainingOptions):
    """Finetune a CLIP text tower so that its embeddings survive character edits (TextFARE).

    The same command continues a training that was broken off.
    """

    help_group: ClassVar[str] = "the encoder and its captions"
    help_first: ClassVar[tuple[str, ...]] = ("source", "captions", "output")

    source: str
    """A CLIP text tower: a folder, a Hub id, "world:original"."""
    captions: str
    """Text (one caption a line), JSONL, CSV, TSV, Parquet, COCO's JSON, webdataset tars, a pattern of such files
    ("shards/*.tar"), or dataset:NAME of Hugging Face datasets."""
    column: str | None = None
    """Where the captions stand in records. Default: the first of prompt, caption, text, raw, sentence."""
    split: str | None = None
    """The split of the captions, where the file tells one."""
    held_out: str | None = None
    """Captions to measure on, read in the same way. Default: a part of --captions."""
    held_out_split: str | None = None
    """The split of --held-out, where it tells one."""
    revision: str | None = None
    subfolder: str | None = None
    tokenizer: str | None = None
    """A folder or Hub id, where the source has no tokenizer of its own."""
    recipe: tyro.conf.OmitArgPrefixes[TextFAREConfig] = field(default_factory=TextFAREConfig)


def finetune(options: FinetuneOptions, process: Accelerator, console: Console) -> None:
    """Read the captions, load the encoder, train."""
    if options.held_out is None:
        refuse_idle(options, "belongs to --held-out", "held_out_split")
    captions = read_caption_file(options.captions, options.column, options.split)
    console.print(f"{len(captions.texts):,} captions, {captions.blank} blank lines left out", highlight=False)
    encoder = load_text_encoder(
        options.source,
        tokenizer=options.tokenizer,
        revision=options.revision,
        subfolder=options.subfolder,
        device=process.device,
    )
    held_out = (
        None if options.held_out is None else read_captions(options.held_out, options.column, options.held_out_split)
    )
    folder = finetune_text_encoder(encoder, captions.texts, options.output, options.recipe, held_out=held_out)
    console.print(f"the finetuned encoder is in {folder}; README.md there has its held-out figures", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_training("finetune", FinetuneOptions, finetune, argv)


if __name__ == "__main__":
    sys.exit(main())
