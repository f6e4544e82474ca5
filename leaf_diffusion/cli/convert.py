"""`leaf-diffusion convert`: a CLIP folder of transformers to one of open_clip, or the other way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from leaf_diffusion.command_line import parse, refuse_idle, run_command
from leaf_diffusion.encoders.convert import to_open_clip, to_transformers
from leaf_diffusion.encoders.convert_config import (
    ModelCfg,
    image_processor,
    open_clip_config,
    preprocess_config,
    transformers_config,
)
from leaf_diffusion.encoders.image_encoder import PROCESSOR
from leaf_diffusion.text.files import read_texts
from leaf_diffusion.tokens.tokenizer import CLIP_VOCABULARY, RowTokenizer, clip_tokenizer
from leaf_diffusion.weights.errors import loading
from leaf_diffusion.weights.files import load_weights
from leaf_diffusion.weights.models import load_config, load_model

CLEANING = (
    "open_clip mends texts before it tokenizes them (curly quotes, HTML entities, full width), transformers does not; "
    "--captions FILE counts the captions that this changes"
)
WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


@dataclass(frozen=True)
class Options:
    """Convert a CLIP between transformers and open_clip; what the source is decides the way.

    A transformers folder (whole CLIP, or text tower with projection) becomes open_clip_model.safetensors and
    open_clip_config.json; an open_clip folder, or a .safetensors file with --architecture, a transformers folder.
    """

    source: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="SOURCE")]]
    """A folder, or a .safetensors file of open_clip."""
    output: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUTPUT")]]
    """The folder to write."""
    architecture: str | None = None
    """An open_clip model, such as ViT-L-14-quickgelu, where the source has no open_clip_config.json."""
    captions: str | None = None
    """Captions as of `leaf-diffusion finetune`: says how many of them the two libraries' tokenizers read differently."""


def convert(words: Sequence[str]) -> int:
    """Run the command; returns the exit status. Raises ValueError or OSError for what cannot be converted."""
    options = parse(Options, words, command="convert")
    if options.output.exists() and any(options.output.iterdir() if options.output.is_dir() else [options.output]):
        raise ValueError(f"{options.output} is there already and not empty: choose another folder")
    captions = None if options.captions is None else [row.text for row in read_texts(options.captions)]
    if options.source.is_dir() and not (options.source / CONFIG).exists():
        refuse_idle(options, "is of an open_clip source", "architecture")
        _write_open_clip(options.source, options.output)
    else:
        _write_transformers(options.source, options.output, options.architecture)
    print(f"note: {CLEANING}")
    if captions is not None:
        print(f"of {len(captions):,} captions {read_differently(captions):,} are read differently")
    return 0


def read_differently(captions: Sequence[str]) -> int:
    """How many captions are other tokens to open_clip's tokenizer than to that of transformers."""
    import open_clip

    theirs, ours = (RowTokenizer(each)(captions) for each in (open_clip.SimpleTokenizer(), clip_tokenizer()))
    return sum(list(a) != list(b) for a, b in zip(theirs, ours, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("convert", convert, argv)


def _write_open_clip(source: Path, output: Path) -> None:
    config = load_config(str(source), {})
    if not isinstance(config, (CLIPConfig, CLIPTextConfig)):
        raise ValueError(f"{source} holds a {config.model_type!r} model, no CLIP")
    content: ModelCfg = {"model_cfg": open_clip_config(config)}
    if isinstance(config, CLIPConfig):
        processor = image_processor(config.vision_config.image_size)
        if (source / PROCESSOR).is_file():
            with loading(str(source), f"{PROCESSOR} cannot be used"):
                processor = CLIPImageProcessor.from_pretrained(source)
        content["preprocess_cfg"] = preprocess_config(processor)
    kind: Any = CLIPModel if isinstance(config, CLIPConfig) else CLIPTextModelWithProjection
    module, _ = load_model(kind, str(source), {}, config=config)  # a tower without its projection is not whole
    converted = {key: value.contiguous() for key, value in to_open_clip(module.state_dict()).items()}
    output.mkdir(parents=True, exist_ok=True)
    save_file(converted, output / WEIGHTS, metadata={"format": "pt"})
    (output / CONFIG).write_text(json.dumps(content, indent=2) + "\n")
    if isinstance(config, CLIPConfig):
        print(f'wrote {output}: open_clip.create_model_and_transforms("local-dir:{output}")')
    else:
        print(f"wrote {output}: a text half, for model.load_state_dict(..., strict=False) of the whole open_clip model")


def _write_transformers(source: Path, output: Path, architecture: str | None) -> None:
    file = source / WEIGHTS if source.is_dir() else source
    if file.suffix != ".safetensors":
        raise ValueError(f"{file} is no .safetensors file; pickles are not opened here")
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    beside, preprocess = file.parent / CONFIG, None
    if architecture is not None:
        import open_clip

        model = open_clip.get_model_config(architecture)
        if model is None:
            raise ValueError(f"open_clip knows no architecture {architecture!r}; see open_clip.list_models()")
    elif beside.is_file():
        with loading(str(beside), "it is no configuration of open_clip"):
            content = json.loads(beside.read_text(encoding="utf-8"))
            model, preprocess = content["model_cfg"], content.get("preprocess_cfg")
    else:
        raise ValueError(f"{file} comes without {CONFIG}: name its --architecture, such as ViT-L-14-quickgelu")
    with loading(str(file), "it is damaged, or no safetensors file of open_clip"):
        state = to_transformers(load_weights(file))
    with loading(str(beside if architecture is None else file), "its architecture makes no CLIP"):
        config = transformers_config(model)
    whole = any(key.startswith("vision_model.") for key in state)
    with loading(str(beside), "its image preprocessing cannot be used"):
        processor = image_processor(config.vision_config.image_size, preprocess) if whole else None
    with loading(str(file), "its architecture makes no CLIP"), torch.device("meta"):
        tower: Any = CLIPModel(config) if whole else CLIPTextModelWithProjection(config.text_config)
    wanted = {key: tuple(value.shape) for key, value in tower.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items() if whole or key != "logit_scale"}
    if wrong := sorted(key for key in wanted.keys() | given.keys() if wanted.get(key) != given.get(key)):
        raise ValueError(
            f"{file} does not fit the architecture: {len(wrong)} tensors differ, such as {wrong[0]}: "
            f"{given.get(wrong[0])} there, {wanted.get(wrong[0])} expected"
        )
    tower.load_state_dict({key: state[key] for key in wanted}, assign=True)
    tower.save_pretrained(output)
    if processor is not None:
        processor.save_pretrained(output)
    if config.text_config.vocab_size == CLIP_VOCABULARY:
        clip_tokenizer().save_pretrained(output)
    print(f"wrote {output}: {type(tower).__name__}.from_pretrained({str(output)!r})")
