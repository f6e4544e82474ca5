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
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.finetune.captions import read_caption_file, read_captions
from leaf_diffusion.finetune.config import TextFAREConfig
from leaf_diffusion.finetune.textfare import finetune_text_encoder, text_task


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainingOptions):
    """Finetune a text encoder so that its embeddings, or its token states, survive character edits (TextFARE).

    The same command continues a training that was broken off.
    """

    help_group: ClassVar[str] = "the encoder and its captions"
    help_first: ClassVar[tuple[str, ...]] = ("source", "pipeline", "captions", "output")

    source: str | None = None
    """A CLIP text tower, T5, BERT or language model: a folder, a Hub id, "world:original"."""
    pipeline: str | None = None
    """In place of --source: a diffusers pipeline (folder or Hub id) whose text encoder is trained, with prompts written for it
    as the pipeline writes them."""
    part: str | None = None
    """The text encoder of --pipeline. Default: text_encoder."""
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
    dtype: str = "float32"
    """What the original is held in, and with it the frozen weights under a LoRA: bfloat16 for a language model."""
    dry_run: bool = False
    """Train nothing: measure one update, and say how long the training would take and how much memory."""
    recipe: tyro.conf.OmitArgPrefixes[TextFAREConfig] = field(default_factory=TextFAREConfig)


def finetune(options: FinetuneOptions, process: Accelerator, console: Console) -> None:
    """Read the captions, load the encoder, train."""
    if options.held_out is None:
        refuse_idle(options, "belongs to --held-out", "held_out_split")
    if (options.source is None) == (options.pipeline is None):
        raise ValueError("give --source, a text encoder, or --pipeline, whose text encoder is to be trained")
    if options.pipeline is None:
        refuse_idle(options, "belongs to --pipeline", "part")
    else:
        refuse_idle(options, "belongs to --source", "revision", "subfolder", "tokenizer")
    captions = read_caption_file(options.captions, options.column, options.split)
    console.print(f"{len(captions.texts):,} captions, {captions.blank} blank lines left out", highlight=False)
    encoder = _encoder(options, process)
    held_out = (
        None if options.held_out is None else read_captions(options.held_out, options.column, options.held_out_split)
    )
    if options.dry_run:
        _say(encoder, captions.texts, held_out, options, console)
        return
    folder = finetune_text_encoder(encoder, captions.texts, options.output, options.recipe, held_out=held_out)
    console.print(f"the finetuned encoder is in {folder}; README.md there has its held-out figures", soft_wrap=True)


def _encoder(options: FinetuneOptions, process: Accelerator) -> TextEncoder:
    if options.source is not None:
        return load_text_encoder(
            options.source,
            tokenizer=options.tokenizer,
            revision=options.revision,
            subfolder=options.subfolder,
            dtype=options.dtype,
            device=process.device,
        )
    from leaf_diffusion.diffusion.loading import load_for_text
    from leaf_diffusion.diffusion.readings import part_encoder

    assert options.pipeline is not None
    pipe = load_for_text(options.pipeline, device=str(process.device), dtype=options.dtype)
    return part_encoder(pipe, options.part or "text_encoder", name=options.pipeline)


def _say(
    encoder: TextEncoder, captions: list[str], held_out: list[str] | None, options: FinetuneOptions, console: Console
) -> None:
    """Print what the training would take."""
    from leaf_diffusion.evaluation.dry_run import MIB, memory_used, span
    from leaf_diffusion.finetune.dry_run import measured_update

    update = measured_update(text_task(encoder, captions, options.recipe, held_out=held_out))
    said = (
        f"{encoder.name}: {update.trained:,} of {update.parameters:,} weights are trained",
        f"{update.steps:,} updates, {update.batches:,} batches of {options.recipe.batch_size} for this process",
        f"a batch, measured: attacked in {update.attack:.2f} s, learnt from in {update.learn:.2f} s",
        f"time: {span(update.seconds)} by that, and held-out measurements every {options.recipe.eval_every} updates",
        f"memory: {memory_used(encoder.device)}",
        f"disk: {update.checkpoint / MIB:,.0f} MiB for a checkpoint",
        "nothing was kept. Longer captions, other processes and a busy machine move these figures.",
    )
    for line in said:
        console.print(line, highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_training("finetune", FinetuneOptions, finetune, argv)


if __name__ == "__main__":
    sys.exit(main())
