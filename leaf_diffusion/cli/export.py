"""`leaf-diffusion export`: a text encoder, or a whole checkpoint around it, as the single file that other programs load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from leaf_diffusion.command_line import parse, refuse_idle, run_command
from leaf_diffusion.encoders.export import export_checkpoint, export_text_encoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.weights.files import read_header


@dataclass(frozen=True)
class Options:
    """Write a text encoder as the single file that ComfyUI loads, or a checkpoint with its text encoder replaced.

    Without --checkpoint: the text encoder alone, the layout of clip_l.safetensors and clip_g.safetensors. With it: a copy
    of that checkpoint (Stable Diffusion 1, 2, XL or 3 in one safetensors file), for ComfyUI, AUTOMATIC1111 and diffusers'
    from_single_file. For both towers of SDXL or SD3 run it twice.
    """

    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SOURCE")]]
    """The text encoder: a folder, a Hub id, "world:leaf", "openclip:ARCHITECTURE/PRETRAINED", a .safetensors file."""
    output: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUTPUT")]]
    """The .safetensors file to write."""
    checkpoint: Path | None = None
    """The checkpoint to copy; it stays as it is, and so does the type of its tensors."""
    part: Literal["text_encoder", "text_encoder_2"] | None = None
    """Which text encoder of the checkpoint to replace, in diffusers' names. Default: the one that fits."""
    adapter: str | None = None
    """A LoRA (PEFT folder or Hub id) to merge into the text encoder first."""
    subfolder: str | None = None
    """Where in the source the text encoder is, such as text_encoder_2."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Type of the tensors in a text encoder's file."""


def export(words: Sequence[str]) -> int:
    """Run the command; returns the exit status. Raises ValueError or OSError for what cannot be written."""
    options = parse(Options, words, command="export")
    if options.output.exists():
        raise FileExistsError(f"{options.output} is there already: choose another name")
    if options.checkpoint is None and options.part is not None:
        raise ValueError("--part names a text encoder of a --checkpoint; for one of the source use --subfolder")
    if options.checkpoint is not None:
        refuse_idle(options, "is of a text encoder's own file; a checkpoint keeps the types of its tensors", "dtype")
        read_header(options.checkpoint)  # a wrong file is told before a large encoder is loaded
    encoder = load_text_encoder(
        options.source, adapter=options.adapter, subfolder=options.subfolder, revision=options.revision
    )
    if options.checkpoint is None:
        export_text_encoder(encoder, options.output, dtype=getattr(torch, options.dtype))
        projection = "with" if encoder.has_projection else "without (the source has none)"
        print(f"wrote {options.output}: the text encoder {options.source}, {projection} text projection")
    else:
        replaced = export_checkpoint(encoder, options.checkpoint, options.output, part=options.part)
        print(f"wrote {options.output}: {options.checkpoint} with {options.source} as {replaced}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("export", export, argv)
