"""LoRA adapters in the format of PEFT, merged into a copy of a text tower."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, cast

from torch import nn

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def merge_adapter(module: nn.Module, adapter: str) -> nn.Module:
    """A copy of `module` with the LoRA of a folder or Hub id merged in; `module` itself stays untouched.

    Raises ModuleNotFoundError without peft, FileNotFoundError without safetensors, ValueError for a misfit.
    """
    try:
        import peft
        from peft.utils import get_peft_model_state_dict
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("adapter= needs the package peft: pip install peft") from error
    from safetensors import safe_open

    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        folder = _download(adapter)
    if missing := [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} is no PEFT adapter in safetensors: {' and '.join(missing)} not found")
    try:
        with warnings.catch_warnings():  # about keys without a place: checked below, as an error
            warnings.simplefilter("ignore")
            wrapped = peft.PeftModel.from_pretrained(cast(Any, copy.deepcopy(module)), str(folder))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"adapter {adapter!r} does not fit {type(module).__name__}: {error}") from error
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        stored = set(file.keys())
    # PEFT itself would go on and merge nothing
    if unused := stored - set(get_peft_model_state_dict(wrapped)):
        raise ValueError(
            f"adapter {adapter!r} does not fit {type(module).__name__}: "
            f"{len(unused)} of {len(stored)} tensors have no place, such as {sorted(unused)[0]!r}"
        )
    return cast(nn.Module, cast(Any, wrapped).merge_and_unload())


def _download(adapter: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(adapter, allow_patterns=[WEIGHTS, CONFIG]))
    except (OSError, ValueError) as error:  # HfHubHTTPError and HFValidationError are among these
        raise FileNotFoundError(f"no adapter {adapter!r}: neither a folder nor on the Hugging Face Hub") from error
