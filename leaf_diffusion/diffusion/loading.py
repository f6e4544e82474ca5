"""What diffusers would find out late, in other words, or not at all, is found before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from diffusers import DiffusionPipeline
from huggingface_hub import is_offline_mode
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError

from leaf_diffusion.diffusion.families import FAMILIES, family_of, named_pipeline
from leaf_diffusion.diffusion.whole import check_parts
from leaf_diffusion.encoders.load import dtype_from_name
from leaf_diffusion.encoders.single_file import places_in
from leaf_diffusion.weights.errors import looks_like_path
from leaf_diffusion.weights.files import read_header
from leaf_diffusion.weights.pickles import SUFFIXES, conversion, refuse_pickle, refuse_pickled_folder

INDEX = "model_index.json"
DENOISERS = ("unet", "transformer")
"""How the names of components begin that draw and read no text."""


def load_for_text(source: str | Path, *, device: str = "cpu", dtype: str | None = None) -> DiffusionPipeline:
    """A pipeline of whatever class with its text encoders, and without its denoiser, which is the larger part.

    Raises FileNotFoundError where there is none; ValueError for pickles, code of its own, and tensors that do not fit.
    """
    options: dict[str, object] = {} if dtype is None else {"dtype": dtype}
    source = checked_folder(source, options, None)
    with found(source, options):
        index = DiffusionPipeline.load_config(source)
        if isinstance(kind := index.get("_class_name"), list):
            raise ValueError(f"{source} brings code of its own ({', '.join(map(str, kind[:1]))}), which is not run")
        if not isinstance(kind, str):
            raise ValueError(f"{source}: {INDEX} names no pipeline class (_class_name)")
        options |= dict.fromkeys(name for name in index if name.startswith(DENOISERS))
        options |= dict.fromkeys(absent_components(source, options))
        pipe = DiffusionPipeline.from_pretrained(source, trust_remote_code=False, **options)
    check_parts(pipe, options)
    return pipe.to(device)


def checked_folder(source: str | Path, options: dict[str, object], leaf: type | None) -> str:
    """The folder or Hub id for `from_pretrained` of the Leaf class, or (None) of any; `options` get safetensors and a dtype that
    is one."""
    _checked_options(options)
    source = str(source)
    if (named := named_pipeline(source)) is not None:
        if leaf is not None and named[0].stock != (stock := family_of(leaf).stock):
            raise ValueError(f'"{source}" is a {named[0].stock}, no {stock}: use Leaf{named[0].stock}')
        return str(named[1])
    folder = Path(source).expanduser()
    if folder.is_dir():
        _check_index(folder, options, leaf)
        return str(folder)
    if folder.is_file():
        refuse_pickle(folder)
        way = f"load it with {leaf.__name__}.from_single_file" if leaf else "give the folder of a pipeline"
        raise ValueError(f"{source} is a file, no folder: {way}")
    if looks_like_path(source):
        raise FileNotFoundError(f"no pipeline {source!r}: the folder {folder.absolute()} does not exist")
    return source


def checked_file(source: str | Path, options: dict[str, object]) -> tuple[str, set[str]]:
    """The file or address for diffusers' `from_single_file`, and the text encoders that the file has (of an address all
    are taken to be there)."""
    _checked_options(options)
    del options["use_safetensors"]  # the file's name says it
    file, everything = Path(source).expanduser(), {"text_encoder", "text_encoder_2"}
    if str(source).lower().endswith(SUFFIXES):
        name = file.name
        raise ValueError(
            f"{source} is a pickle, which can run code when opened: only safetensors are loaded. Convert it: "
            f"{conversion((file if file.exists() else Path(name), Path(name).with_suffix('.safetensors')))}"
        )
    if "://" in str(source):
        return str(source), everything
    places = places_in(read_header(file))
    return str(file), {place.part for place in places}


def absent_components(source: str, options: Mapping[str, object]) -> set[str]:
    """The components that a pipeline's index names without having them; diffusers wants to be told of each."""
    where = {name: options[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in options}
    return {name for name, value in DiffusionPipeline.load_config(source, **where).items() if value == [None, None]}


def _checked_options(options: dict[str, object]) -> None:
    if not options.setdefault("use_safetensors", True):
        raise ValueError("use_safetensors=False would open pickles, which can run code: only safetensors are loaded")
    for name in ("dtype", "torch_dtype"):
        if isinstance(dtype := options.get(name), str):  # diffusers would load float32 instead
            options[name] = dtype_from_name(dtype)


def _check_index(folder: Path, options: Mapping[str, object], leaf: type | None) -> None:
    if not (folder / INDEX).is_file():
        hint = "it holds an encoder, which is given as text_encoder=" if (folder / "config.json").is_file() else ""
        raise FileNotFoundError(f"no pipeline in {folder}: there is no {INDEX}" + (f"; {hint}" if hint else ""))
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        parts = {name: value for name, value in index.items() if isinstance(value, list) and value[:1] != [None]}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder / INDEX} is damaged ({error})") from error
    kind = str(index.get("_class_name")).removeprefix("Leaf")
    if leaf is not None and kind in FAMILIES.keys() - {family_of(leaf).stock}:
        raise ValueError(f"{folder} is a {kind}, which {leaf.__name__} cannot run: use Leaf{kind}")
    variant = options.get("variant")
    wanted = (folder / name for name in parts if name not in options)
    refuse_pickled_folder(*wanted, variant=variant if isinstance(variant, str) else None)


@contextmanager
def found(source: str, options: Mapping[str, object]) -> Iterator[None]:
    """Whatever diffusers and the Hub say of a name that cannot be had becomes a FileNotFoundError that says what to do."""
    try:
        yield
    except NotImplementedError as error:  # as torch says it of a tensor that nothing filled
        if "meta tensor" not in str(error):
            raise
        raise ValueError(f"{source}: tensors of one of its networks are missing") from error
    except RuntimeError as error:  # as transformers says it; the tensors stand in a report that was printed
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"{source}: a text encoder's tensors are of another shape than its config.json says"
        ) from error
    except (OSError, HFValidationError) as error:
        if Path(source).is_dir():
            raise
        if options.get("local_files_only") or is_offline_mode():
            switch = "local_files_only=True" if options.get("local_files_only") else "HF_HUB_OFFLINE"
            reason = f"{switch} keeps the Hub out, and it is not among what was downloaded before ({HF_HUB_CACHE})"
        else:
            reason = f"the Hub says: {str(error).strip().splitlines()[0]}"
        if Path(source).is_file():
            raise FileNotFoundError(
                f"{source}: the configuration of its pipeline cannot be had: {reason}. Give config=FOLDER, the folder of "
                "a pipeline of that kind"
            ) from error
        raise FileNotFoundError(
            f"no pipeline {source!r}: there is no such folder, and {reason}. Check the spelling and the connection, or "
            'give a local folder; "world" needs neither'
        ) from error


def even_dtypes(pipeline: object, options: Mapping[str, object]) -> None:
    """Without a dtype, diffusers loads its own models in float32 and transformers the text encoders in the file's type;
    the first such image from float16 files would fail. The denoiser's type then holds for both."""
    if options.get("dtype") is not None or options.get("torch_dtype") is not None:
        return
    family = family_of(pipeline)
    denoiser = getattr(pipeline, family.denoiser, None)
    for each in family.text_encoders:
        part = getattr(pipeline, each.part, None)
        if part is not None and denoiser is not None and each.part not in options and part.dtype != denoiser.dtype:
            part.to(dtype=denoiser.dtype)
