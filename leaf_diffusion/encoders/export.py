"""Text encoders for programs that load single files: the tower alone, or a whole checkpoint around it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.causal import causal_parts
from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.encoders.convert import State, to_open_clip, to_transformers
from leaf_diffusion.encoders.lora import plain_encoder
from leaf_diffusion.encoders.single_file import HEAD, HEADS, Place, blocks, choose, loader_act, places_in, under
from leaf_diffusion.encoders.swap import is_identity
from leaf_diffusion.tokens.tokenizer import is_clip_vocabulary
from leaf_diffusion.weights.files import Entry, Header, load_weights, read_header

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
LOADERS_EPSILON, LOADERS_CONTEXT = 1e-5, 77  # CLIP's own, which no file of weights says
_PROJECTION = ("text_projection", "text_projection.weight")
_HASHES = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")  # of the weights that were there before


def export_text_encoder(encoder: TextEncoder, output: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write the tower as one safetensors file under transformers' names ("text_model.…"), the layout of ComfyUI's
    `clip_l.safetensors` and `clip_g.safetensors`; it appears whole or not at all.

    ValueError where a loader, which sees shapes alone, would run the tower with another activation or tokenizer, and for
    values beyond `dtype`; FileExistsError where `output` is there already.
    """
    encoder = plain_encoder(encoder)
    state = tower_state(encoder)
    _check_reading(encoder, loader_act(blocks(state)))
    state = {key: _cast(key, value, dtype) for key, value in state.items()}
    with _whole_file(output) as file:
        save_file(state, file, metadata={"format": "pt", HEADS: str(causal_parts(encoder).blocks[0].heads)})


def export_checkpoint(encoder: TextEncoder, checkpoint: Path, output: Path, *, part: str | None = None) -> str:
    """Write `checkpoint` (Stable Diffusion 1, 2, XL or 3 in one safetensors file) with its text encoder replaced.

    All other tensors keep their bytes and every tensor its type, so the file is copied and written over in place: memory
    holds the tower alone. `part`: "text_encoder" or "text_encoder_2"; else the one that fits. A text projection is
    replaced where both have one; SD3's CLIP-L keeps its identity, as SD3 was trained on what is not projected.

    Returns what was replaced, for people. FileNotFoundError, FileExistsError; ValueError for a pickle, for a file without
    a text encoder and for a misfit, before anything is written; OSError where the disk cannot hold the copy.
    """
    encoder, header = plain_encoder(encoder), read_header(checkpoint)
    place, changes, projection = _fitting(encoder, checkpoint, header, part)
    width = encoder.token_embedding().shape[1]
    _check_reading(encoder, place.act, int(header.metadata.get(HEADS, 0)) or width // HEAD)
    values = {key: _cast(key, value, DTYPES[header.entries[key].dtype]) for key, value in changes.items()}
    with _whole_file(output, size=checkpoint.stat().st_size) as file:
        shutil.copyfile(checkpoint, file)
        with open(file, "r+b") as opened:
            opened.seek(8)
            opened.write(_without_hashes(header))
            for key, value in values.items():
                opened.seek(header.entries[key].begin)
                opened.write(value.view(torch.uint8).numpy().tobytes())
        written = load_weights(file, values)
        if any(not torch.equal(written[key], value) for key, value in values.items()):
            raise OSError(f"{output}: what was written does not read back the same")
    return f"the {place.what}, {len(values)} tensors; {projection}"


def tower_state(encoder: TextEncoder) -> State:
    """The tower's weights under the names of `CLIPTextModelWithProjection`, a LoRA that it carries merged into them."""
    encoder = plain_encoder(encoder)
    weights = {name: value.detach() for name, value in encoder.weights()}
    if isinstance(encoder, HFTextEncoder):
        return {key if key in _PROJECTION else f"text_model.{key}": value for key, value in weights.items()}
    return to_transformers(weights)


def _fitting(
    encoder: TextEncoder, checkpoint: Path, header: Header, part: str | None
) -> tuple[Place, dict[str, Tensor], str]:
    """The place that the encoder fits, the tensors to write by their keys, and what becomes of the projection."""
    places = places_in(header)
    if part is not None or len(places) <= 1:
        places = [choose(checkpoint, places, part)]
    state = tower_state(encoder)
    converted = {True: to_open_clip(state), False: state}
    misfits = {place: _misfit(converted[place.open_clip], under(header, place), place) for place in places}
    fitting = [place for place in places if misfits[place] is None]
    if not fitting:
        told = "; ".join(f"{place.what}: {misfit}" for place, misfit in misfits.items())
        raise ValueError(f"the text encoder {encoder.name} does not fit {checkpoint}: {told}")
    place = choose(checkpoint, fitting, None)
    stored, own = under(header, place), converted[place.open_clip]
    projected = next((key for key in _PROJECTION if key in stored), None)
    keep = projected is not None and (
        projected not in own
        or is_identity(load_weights(checkpoint, [place.prefix + projected])[place.prefix + projected])
    )
    if projected is None:
        said = "the file has no text projection, the encoder's is left out"
    else:
        said = "the text projection is the checkpoint's" if keep else "the text projection is replaced, too"
    names = [key for key in stored if key in own and not (keep and key == projected)]
    return place, {place.prefix + key: own[key] for key in names}, said


def _misfit(state: State, stored: Mapping[str, Entry], place: Place) -> str | None:
    """What differs between an encoder and the tower in a file, apart from the projection; None where it fits."""
    wanted = {key: entry.shape for key, entry in stored.items() if key not in _PROJECTION}
    given = {key: tuple(value.shape) for key, value in state.items() if key not in _PROJECTION}
    last = sorted({int(key.split(".")[2]) for key in wanted if key.startswith("transformer.resblocks.")})
    for number in last[len(last) - place.unused :]:  # diffusers drops the block that no loader runs
        if not any(key.startswith(f"transformer.resblocks.{number}.") for key in given):
            wanted = {k: v for k, v in wanted.items() if not k.startswith(f"transformer.resblocks.{number}.")}
    if types := sorted({entry.dtype for entry in stored.values()} - set(DTYPES)):
        return f"its tensors are of type {', '.join(types)}, only {', '.join(DTYPES)} can be written"
    wrong = sorted(key for key in wanted.keys() | given.keys() if wanted.get(key) != given.get(key))
    if not wrong:
        return None
    # the width says most, and both always have a token table
    key = next((key for key in wrong if "token_embedding" in key), wrong[0])
    there, here = (list(shapes[key]) if key in shapes else "none" for shapes in (wanted, given))
    return f"{len(wrong)} tensors differ, such as {key}: {there} in the file, {here} in the encoder"


def _check_reading(encoder: TextEncoder, act: str, heads: int | None = None) -> None:
    """ValueError where a loader would read or run the tower otherwise than it was made for.

    `heads`: what the loader takes them to be; None where the file says it.
    """
    if isinstance(encoder, HFTextEncoder) and not is_clip_vocabulary(encoder.tokenizer.get_vocab()):
        raise ValueError(f"{encoder.name} reads with a tokenizer that is not CLIP's, the only one that loaders have")
    parts = causal_parts(encoder)
    block = parts.blocks[0]
    runs = [
        ("activation", "quick_gelu" if block.quick else "gelu", act),
        ("heads", block.heads, heads or block.heads),
        ("norms' epsilon", block.norm1.eps, LOADERS_EPSILON),
        ("positions", len(parts.positions), LOADERS_CONTEXT),
    ]
    if wrong := [
        f"{what} {own}, but loaders run such a file with {theirs}" for what, own, theirs in runs if own != theirs
    ]:
        raise ValueError(
            f"{encoder.name} was made with the {'; with the '.join(wrong)}: its states would be wrong. "
            "Use an encoder of the same CLIP family"
        )


def _cast(key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    found = value.to("cpu", dtype).contiguous()
    if not torch.isfinite(found).all():
        raise ValueError(f"{key} has values that {dtype} cannot hold")
    return found


def _without_hashes(header: Header) -> bytes:
    """The header, hashes of the old weights left out, filled up with spaces (which the format allows)."""
    if not header.metadata.keys() & set(_HASHES):
        return header.text
    content = json.loads(header.text)
    content["__metadata__"] = {key: value for key, value in header.metadata.items() if key not in _HASHES}
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode().ljust(len(header.text))


@contextmanager
def _whole_file(output: Path, size: int = 0) -> Iterator[Path]:
    """A file beside `output` to write into, which takes its place at the end or vanishes."""
    if output.suffix != ".safetensors":
        raise ValueError(f"{output}: loaders know such a file by its ending, name it {output.name}.safetensors")
    if output.exists():
        raise FileExistsError(f"{output} is there already: choose another name")
    output.parent.mkdir(parents=True, exist_ok=True)
    for left in output.parent.glob(f".{escape(output.name)}.*.tmp"):  # by a process that was killed here
        left.unlink(missing_ok=True)
    if (free := shutil.disk_usage(output.parent).free) < size:
        raise OSError(f"{output.parent}: {free / 1e6:.0f} MB free, the copy takes {size / 1e6:.0f} MB")
    descriptor, name = tempfile.mkstemp(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent)
    os.close(descriptor)
    try:
        yield Path(name)
        with open(name, "r+b") as written:
            os.fsync(written.fileno())
        os.chmod(name, 0o644)
        os.replace(name, output)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
