"""`leaf-diffusion finetune-image`: make an image tower robust (FARE)."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import tyro
from rich.console import Console

from leaf_diffusion.encoders.image_encoder import load_image_encoder
from leaf_diffusion.finetune.fare import FAREConfig, finetune_image_encoder
from leaf_diffusion.finetune.images import read_images
from leaf_diffusion.finetune.processes import process_on


@dataclass(frozen=True)
class FinetuneImageOptions:
    """Finetune a CLIP image tower so that its features survive small changes of pixels (FARE).

    The same command continues a training that was broken off.
    """

    help_first: ClassVar[tuple[str, ...]] = ("source", "images", "output")
    renamed: ClassVar[dict[str, str]] = {"--pictures": "--images"}

    source: str
    """A CLIP of transformers or its image tower: a folder, a Hub id, "world:original"."""
    images: str
    """A folder of images (sub-folders too), or world:N, N drawn scenes of the embedded world."""
    output: Path
    """The folder of the finetuned tower."""
    held_out: str | None = None
    """Images to measure on, given in the same way. Default: a part of --images."""
    revision: str | None = None
    subfolder: str | None = None
    device: str = "auto"
    """auto, cpu or cuda; a launcher (torchrun, accelerate) gives each of its processes a GPU of its own."""
    config: tyro.conf.OmitArgPrefixes[FAREConfig] = field(default_factory=FAREConfig)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = tyro.cli(FinetuneImageOptions, args=argv, prog="leaf-diffusion finetune-image")
    process = process_on(options.device)
    console = Console(quiet=not process.is_main_process)
    images = read_images(options.images)
    held_out = None if options.held_out is None else read_images(options.held_out)
    console.print(f"{len(images.names):,} images", highlight=False)
    encoder = load_image_encoder(
        options.source, revision=options.revision, subfolder=options.subfolder, device=process.device
    )
    folder = finetune_image_encoder(encoder, images, options.output, options.config, held_out=held_out)
    console.print(f"the finetuned tower is in {folder}; README.md there has its held-out figures", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
