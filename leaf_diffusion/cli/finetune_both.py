"""`leaf-diffusion finetune-both`: make both towers of a CLIP robust, together."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import tyro
from accelerate import Accelerator
from rich.console import Console

from leaf_diffusion.cli.training import TrainingOptions, run_training
from leaf_diffusion.encoders.image_encoder import load_image_encoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.finetune.images import read_pairs, split_pairs
from leaf_diffusion.finetune.joint import JointConfig, finetune_both


@dataclass(frozen=True, kw_only=True)
class FinetuneBothOptions(TrainingOptions):
    """Finetune the text and the image tower of one CLIP together, on captions with their images; they come into
    text/ and image/ of the output.

    The same command continues a training that was broken off.
    """

    help_group: ClassVar[str] = "the encoders and their pairs"
    help_first: ClassVar[tuple[str, ...]] = ("source", "pairs", "output")
    renamed: ClassVar[dict[str, str]] = {"--pictures": "--images"}

    source: str
    """A CLIP of transformers: a folder, a Hub id, "world:original"."""
    pairs: str
    """A file that says which image a caption belongs to (JSONL with image and caption, COCO captions, Karpathy split), or
    world:N, N drawn scenes of the embedded world."""
    images: Path | None = None
    """The folder of the images that a file names."""
    column: str | None = None
    """Where the captions stand in records. Default: the first of prompt, caption, text, raw, sentence."""
    split: str | None = None
    """The split of the captions, where the file tells one."""
    recipe: tyro.conf.OmitArgPrefixes[JointConfig] = field(default_factory=JointConfig)


def finetune(options: FinetuneBothOptions, process: Accelerator, console: Console) -> None:
    """Read the pairs, load both towers, train."""
    pairs, held_out = split_pairs(read_pairs(options.pairs, options.images, options.column, options.split))
    text = load_text_encoder(options.source, device=process.device)
    image = load_image_encoder(options.source, device=process.device)
    console.print(f"{len(pairs.names):,} pairs, {len(held_out.names)} held out", highlight=False)
    folder = finetune_both(text, image, pairs, options.output, options.recipe, held_out=held_out)
    console.print(
        f"the towers are in {folder}/text and {folder}/image; README.md there has their figures", soft_wrap=True
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_training("finetune-both", FinetuneBothOptions, finetune, argv)


if __name__ == "__main__":
    sys.exit(main())
