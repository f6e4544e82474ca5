"""Models of transformers from outside: safetensors alone, whole, finite, and none of their code is run."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypedDict

from transformers import AutoConfig
from transformers.utils.hub import cached_file

from leaf_diffusion.weights.errors import loading
from leaf_diffusion.weights.files import FLOATS, check_finite, read_header
from leaf_diffusion.weights.pickles import require_safetensors

INDEX = "model.safetensors.index.json"
VARIANTS = ("fp16", "bf16")
BUFFERS = ("position_ids", "attn_mask")
"""Ends of the names of tensors that say nothing: older versions stored them."""


class Where(TypedDict, total=False):
    """Which version and part of a repository: a branch, tag or commit, and a folder in it ("": none)."""

    revision: str | None
    subfolder: str


def load_config(source: str, where: Where) -> Any:
    """The configuration of a transformers model. ValueError for damaged ones, and for kernels by name, which are code."""
    with loading(source, f"{_at(where)}config.json cannot be used"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **where)
        parts = [config, *(getattr(config, name) for name in getattr(config, "sub_configs", {}))]
        for name in ("_attn_implementation", "_experts_implementation"):
            if kernel := next((each for part in parts if "/" in (each := str(getattr(part, name, None)))), None):
                raise ValueError(f"{source}: config.json asks for the kernel {kernel!r}, code that is not run here")
    return config


def load_model(
    kind: Any, source: str, where: Where, *, config: Any, dtype: Any = None, spare: Collection[str] = ()
) -> tuple[Any, set[str]]:
    """A model of a transformers class with all its weights, and the names of stored tensors that it did not need.

    `spare`: prefixes of tensors that belong to another half of what is stored. Any other that is left over (a block more
    than the configuration has, say), a missing, misshapen or non-finite tensor is a ValueError that names it.
    """
    folder = Path(source) / (where.get("subfolder") or "")
    if folder.is_dir():
        check_folder(folder, whole_numbers=getattr(config, "quantization_config", None) is not None)
        variant = _variant(folder)
    else:
        if index := cached_file(source, INDEX, **QUIET, **where):
            check_index(Path(index))
        variant = None if index else _variant_on_the_hub(source, where)
    with loading(source, "the weights cannot be loaded, or config.json does not fit them"):
        module, info = kind.from_pretrained(
            source, config=config, use_safetensors=True, trust_remote_code=False, dtype=dtype, variant=variant,
            output_loading_info=True, ignore_mismatched_sizes=True, **where,
        )  # fmt: skip
    left = {key for key in info["unexpected_keys"] if not key.endswith(BUFFERS)}
    missing = {key for key in info["missing_keys"] if not key.endswith(BUFFERS)}
    misshapen = {
        f"{key}: {list(stored)} there, {list(own)} by config.json" for key, stored, own in info["mismatched_keys"]
    }
    extra = {key for key in left if not key.startswith(tuple(spare))}
    for keys, said in ((missing, "missing"), (misshapen, "of another shape"), (extra, "too many")):
        if keys:
            raise ValueError(f"{source}: {len(keys)} tensors of {kind.__name__} are {said}, such as {min(keys)}")
    check_finite(source, module.state_dict().items())
    return module, left


QUIET = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}


def check_folder(folder: Path, *, whole_numbers: bool = False) -> None:
    """Refuses a model's folder whose weights are pickles, lie elsewhere or are damaged; `whole_numbers` as weights, too,
    unless the model is a quantised one."""
    for index in folder.glob("*.safetensors.index.json"):
        check_index(index)
        for name in _named(index):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{index} names {name}, which is not there")
    require_safetensors(folder)
    for file in folder.glob("*.safetensors"):
        for key, entry in read_header(file).entries.items():
            if entry.dtype not in FLOATS and not key.endswith(BUFFERS) and not whole_numbers:
                raise ValueError(f"{file}: the tensor {key!r} is of type {entry.dtype}, no weights")


def check_index(index: Path) -> None:
    """ValueError where the index of a model in several files names one outside its folder, or a pickle."""
    for name in _named(index):
        if Path(name).name != name or "\\" in name:
            raise ValueError(f"{index} names {name!r}, which leads out of its folder")
        if not name.endswith(".safetensors"):
            raise ValueError(f"{index} names {name!r}: only .safetensors are loaded, others could run code")


def _named(index: Path) -> list[str]:
    with loading(str(index), "it is no index of weights"):
        return sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})


def _variant(folder: Path) -> str | None:
    """The variant ("fp16": model.fp16.safetensors) that is the only one in a folder."""
    names = [path.name.split(".") for path in folder.glob("model*.safetensors*")]
    plain = any(parts[1] == "safetensors" for parts in names)
    found = {parts[1] for parts in names if len(parts) == 3}
    return found.pop() if not plain and len(found) == 1 else None


def _variant_on_the_hub(source: str, where: Where) -> str | None:
    """The same of a repository; what is fetched on the way is what will be loaded."""
    if cached_file(source, "model.safetensors", **QUIET, **where):
        return None
    return next((name for name in VARIANTS if cached_file(source, f"model.{name}.safetensors", **QUIET, **where)), None)


def _at(where: Where) -> str:
    return f"{where['subfolder']}/" if where.get("subfolder") else ""
