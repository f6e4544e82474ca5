"""`leaf-diffusion finetune-image`: make an image tower robust (FARE)."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import tyro
from accelerate import Accelerator
from rich.console import Console

from leaf_diffusion.cli.training import TrainingOptions, run_training
from leaf_diffusion.encoders.image_encoder import load_image_encoder
from leaf_diffusion.finetune.fare import FAREConfig, finetune_image_encoder
from leaf_diffusion.finetune.images import read_images


@dataclass(frozen=True, kw_only=True)
class FinetuneImageOptions(TrainingOptions):
    """Finetune a CLIP image tower so that its features survive small changes of pixels (FARE).

    The same command continues a training that was broken off.
    """

    help_group: ClassVar[str] = "the encoder and its images"
    help_first: ClassVar[tuple[str, ...]] = ("source", "images", "output")
    renamed: ClassVar[dict[str, str]] = {"--pictures": "--images"}

    source: str
    """A CLIP of transformers or its image tower: a folder, a Hub id, "world:original"."""
    images: str
    """A folder of images (sub-folders too), or world:N, N drawn scenes of the embedded world."""
    held_out: str | None = None
    """Images to measure on, given in the same way. Default: a part of --images."""
    revision: str | None = None
    subfolder: str | None = None
    recipe: tyro.conf.OmitArgPrefixes[FAREConfig] = field(default_factory=FAREConfig)


def finetune(options: FinetuneImageOptions, process: Accelerator, console: Console) -> None:
    """Read the images, load the tower, train."""
    images = read_images(options.images)
    held_out = None if options.held_out is None else read_images(options.held_out)
    console.print(f"{len(images.names):,} images", highlight=False)
    encoder = load_image_encoder(
        options.source, revision=options.revision, subfolder=options.subfolder, device=process.device
    )
    folder = finetune_image_encoder(encoder, images, options.output, options.recipe, held_out=held_out)
    console.print(f"the finetuned tower is in {folder}; README.md there has its held-out figures", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_training("finetune-image", FinetuneImageOptions, finetune, argv)


if __name__ == "__main__":
    sys.exit(main())
