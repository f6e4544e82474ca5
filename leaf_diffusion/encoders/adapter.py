"""LoRA adapters in the format of PEFT, merged into a copy of a text tower."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

from leaf_diffusion.weights.files import load_weights, read_header

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ROOT = "base_model.model."
INNER = ("text_model", "model", "model.language_model")
"""Names that classes of transformers hold a text transformer under: of a CLIP, of a language model, of one that sees."""


def merge_adapter(module: nn.Module, adapter: str) -> nn.Module:
    """A copy of `module` with the LoRA of a folder or Hub id merged in; `module` itself stays untouched.

    Raises ModuleNotFoundError without peft, FileNotFoundError without safetensors, ValueError for a misfit.
    """
    try:
        import peft
        from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("adapter= needs the package peft: pip install peft") from error
    folder = adapter_folder(adapter)
    if missing := [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} is no PEFT adapter in safetensors: {' and '.join(missing)} not found")
    stored = load_weights(folder / WEIGHTS)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        if getattr(config, "megatron_config", None):  # PEFT would import whatever module the file names
            raise ValueError("its megatron_config names code to be run, which is not done here")
        wrapped = peft.get_peft_model(copy.deepcopy(module), config)
        places = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
        # the table itself, which PEFT stores as well where it cannot tell whether it is new
        tables = {f"{ROOT}{name}.base_layer.weight" for name, _ in module.named_modules()}
        named = {_place(key, places | tables): value for key, value in stored.items()}
        # PEFT itself would go on and merge what is there, or nothing
        if unused := sorted(set(named) - places - tables):
            raise ValueError(f"{len(unused)} of {len(stored)} tensors have no place, such as {unused[0]!r}")
        if absent := sorted(places - set(named)):
            raise ValueError(f"{WEIGHTS} lacks {len(absent)} of {len(places)} tensors, such as {absent[0]!r}")
        set_peft_model_state_dict(wrapped, named)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"adapter {adapter!r} does not fit {type(module).__name__}: {error}") from error
    return wrapped.merge_and_unload()


def adapter_folder(adapter: str) -> Path:
    """The folder of an adapter, downloaded where it is none. FileNotFoundError; ValueError for files of other programs."""
    folder = Path(adapter).expanduser()
    _refuse_others(folder)
    return folder if folder.is_dir() else _download(adapter)


def _place(key: str, places: set[str]) -> str:
    """Some classes hold the transformer under a name, others are it: an adapter of one fits the other."""
    for name in INNER:
        for other in (key.replace(f".{name}.", ".", 1), key.replace(ROOT, f"{ROOT}{name}.", 1)):
            if key not in places and other in places:
                return other
    return key


def _refuse_others(place: Path) -> None:
    """ValueError for the LoRA files of other programs, by their name."""
    files = [place] if place.is_file() else [] if (place / CONFIG).exists() else sorted(place.glob("*.safetensors"))
    for file in files:
        keys = list(read_header(file).entries)
        whose = "kohya's" if any(key.startswith("lora_") for key in keys) else "diffusers'"
        if whose == "kohya's" or any(key.startswith(("text_encoder", "unet.", "transformer.")) for key in keys):
            raise ValueError(
                f"{file} is a LoRA in {whose} format; a folder of PEFT ({WEIGHTS}, {CONFIG}) is read here. A pipeline reads "
                "it: load_lora_weights"
            )


def _download(adapter: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(adapter, allow_patterns=[WEIGHTS, CONFIG, "reading.json"]))
    except (OSError, ValueError) as error:  # HfHubHTTPError and HFValidationError are among these
        raise FileNotFoundError(f"no adapter {adapter!r}: neither a folder nor on the Hugging Face Hub") from error
