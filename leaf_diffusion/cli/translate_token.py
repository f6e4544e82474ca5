"""`leaf-diffusion translate-token`: a file of textual inversion, translated for another text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
import tyro
from rich.console import Console
from rich.progress import Progress

from leaf_diffusion.command_line import parse, run_command
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.evaluation.options import resolve_device
from leaf_diffusion.finetune.translate import STEPS, TEMPLATES, read_tensors, translate_file


@dataclass(frozen=True)
class Options:
    """Translate a learnt token (textual inversion) of one text encoder for another, such as its robust successor.

    The new file is laid out as the old one, for diffusers' load_textual_inversion, ComfyUI and AUTOMATIC1111. Neither
    images nor the denoiser are needed.
    """

    help_first: ClassVar[tuple[str, ...]] = ("source", "target")
    renamed: ClassVar[Mapping[str, str]] = {"--steps": "--search-steps"}

    embedding: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="EMBEDDING")]]
    """The .safetensors file of the learnt token."""
    output: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUTPUT")]]
    """The .safetensors file to write."""
    source: str = tyro.MISSING
    """The text encoder that it was learnt for: a folder, a Hub id, "world:original", a .safetensors file."""
    target: str = tyro.MISSING
    """The text encoder that it is to be used with."""
    key: str | None = None
    """Which tensor of the file, where several fit: "clip_l" or "clip_g" of SDXL; the others stay as they are."""
    layer: int = -1
    """Which states the denoiser sees: -1 for Stable Diffusion 1 and 2, -2 for the towers of SDXL and SD3."""
    templates: tuple[str, ...] = TEMPLATES
    """Prompts around the token, with one {} each."""
    search_steps: int = STEPS
    """Steps of the search."""
    device: str = "auto"
    """auto (a GPU where there is one, else the CPU), cpu, cuda, cuda:1, mps."""


def translate(words: Sequence[str]) -> int:
    """Run the command; returns the exit status. Raises ValueError or OSError for what cannot be translated."""
    options = parse(Options, words, command="translate-token")
    if options.output.exists():
        raise FileExistsError(f"{options.output} is there already: choose another name")
    read_tensors(options.embedding)  # a wrong file is told before two encoders are loaded
    source, target = (load_tower(name, resolve_device(options.device)) for name in (options.source, options.target))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with Progress(console=Console(stderr=True)) as bars:
        bar = bars.add_task("translating", total=options.search_steps)
        found = translate_file(
            options.embedding, options.output, source, target, key=options.key, templates=options.templates,
            layer=options.layer, steps=options.search_steps, advance=lambda: bars.advance(bar),
        )  # fmt: skip
    print(
        f"wrote {options.output}: states {found.before:.3g} -> {found.after:.3g} from the source's, relative and squared"
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("translate-token", translate, argv)


def load_tower(name: str, device: str) -> TextEncoder:
    """The text encoder of that name, in float32."""
    loaded = load_text_encoder(name, device=device, dtype=torch.float32)
    if not isinstance(loaded, TextEncoder):
        raise ValueError(f"{name}: {type(loaded).__name__} has no token embeddings that could be learnt")
    return loaded
