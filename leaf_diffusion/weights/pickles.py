"""Pickled weights are refused, with the command that converts them."""

from __future__ import annotations

import shlex
from pathlib import Path

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # torch.save since 1.6, and before
# of a training's checkpoint the weights are taken (state_dict, model), without the names of what wrapped the model
_CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    "torch.serialization.add_safe_globals([torch.nn.ParameterDict]); "  # of the first learnt tokens
    "[save_file({k[len(p):]: v.detach().clone().contiguous() for k, v in t.items() if isinstance(v, torch.Tensor)}, "
    "new, {'format': 'pt'}) for old, new in zip(sys.argv[1::2], sys.argv[2::2]) "
    "for s in [torch.load(old, map_location='cpu', weights_only=True)] "
    "for t in [next((s[n] for n in ('string_to_param', 'state_dict', 'model') if hasattr(s.get(n), 'items')), s)] "
    "for p in [next((p for p in ('module.', 'model.')[: 1 + (t is not s)] if all(str(k).startswith(p) for k in t)), '')]]"
)


def is_pickle(file: Path) -> bool:
    """Whether the name, or the first bytes, are those of pickled weights."""
    if file.suffix.lower() in SUFFIXES:
        return True
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        return opened.read(4).startswith((_ZIP, _PICKLE)) and file.suffix.lower() != ".safetensors"


def refuse_pickle(file: Path) -> None:
    """ValueError with the command that writes `file` as safetensors, where it is a pickle."""
    if is_pickle(file):
        raise ValueError(
            f"{file} is a pickle, which can run code when opened: only safetensors are loaded. Convert it: "
            f"{conversion((file, file.with_suffix('.safetensors')))}"
        )


def refuse_pickled_folder(*folders: Path, variant: str | None = None) -> None:
    """ValueError with the command that converts them, where folders of models hold pickled weights alone.

    `variant`: only weights of that name count ("fp16": model.fp16.safetensors), as in diffusers, or those without.
    """
    pairs, named = [], f".{variant}" if variant else ""
    for folder in folders:
        if any(folder.glob("*.safetensors")) or any(folder.glob("*.safetensors.index.json")):
            continue
        pickles = [path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES and named in path.name]
        if pickles:
            weights = max(pickles, key=lambda path: path.stat().st_size)  # beside a training's arguments, say
            name = weights.with_suffix(".safetensors").name
            pairs.append(
                (weights, folder / name.replace("pytorch_model", "model", 1 if name.startswith("pytorch_model") else 0))
            )
    if pairs:
        raise ValueError(
            f"{', '.join(str(weights.parent) for weights, _ in pairs)}: only pickled weights "
            f"({', '.join(weights.name for weights, _ in pairs)}), which can run code when opened. Convert them: "
            f"{conversion(*pairs)}"
        )


def require_safetensors(folder: Path) -> None:
    """ValueError where a folder holds pickled weights alone, FileNotFoundError where it holds none."""
    if any(folder.glob("*.safetensors")):
        return
    refuse_pickled_folder(folder)
    raise FileNotFoundError(f"{folder} has a config.json but no weights: there is no *.safetensors file")


def conversion(*pairs: tuple[Path, Path]) -> str:
    """The shell command that writes the tensors of pickles as safetensors, (pickle, new file) each; nothing else in them
    is run."""
    return f'python -c "{_CONVERT}" ' + " ".join(shlex.quote(str(path)) for pair in pairs for path in pair)
