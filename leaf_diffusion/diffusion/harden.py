"""Other text encoders, or a defence before them, for a pipeline of whatever class."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from leaf_diffusion.diffusion.pipeline import LeafPipeline
from leaf_diffusion.encoders.base import Defence, TextEncoder
from leaf_diffusion.encoders.load import load_defence
from leaf_diffusion.encoders.lora import lora_layers
from leaf_diffusion.encoders.settings import settings
from leaf_diffusion.encoders.swap import exchanged
from leaf_diffusion.weights.files import check_finite
from leaf_diffusion.weights.models import load_config, load_model

P = TypeVar("P")
PROMPTS = ("prompt", "prompt_2", "prompt_3", "prompt_4")
"""Arguments of `encode_prompt` that a defence reads. Negative prompts are the user's own words."""


def harden(pipeline: P, *, defence: str | Defence | None = None, **encoders: str | Path | nn.Module | TextEncoder) -> P:
    """A pipeline of the same class that shares everything with `pipeline` but the text encoders that are given by the names of
    their components: `harden(pipe, text_encoder=..., text_encoder_2=...)`.

    A CLIP is given as to the Leaf pipelines (a folder, a Hub id, "openclip:...", a module); any other text encoder (T5, a
    language model) as a module, or a folder or Hub id that transformers loads in the class of the old one. It has to have the
    old one's tensors and settings, gets its device and dtype, and reads with the pipeline's tokenizer. `defence`: what prompts
    go through first, as in `load_text_encoder`; one that `pipeline` has stays, and none is saved. A module is moved and cast as it is,
    not copied.

    Raises ValueError that names every misfit, and for text encoders that the pipeline does not have.
    """
    components: dict[str, Any] = getattr(pipeline, "components", {})
    new: dict[str, nn.Module] = {}
    for name, source in encoders.items():
        current = components.get(name)
        if not isinstance(current, nn.Module) or "text_encoder" not in name:
            known = [each for each, part in components.items() if "text_encoder" in each and part is not None]
            raise ValueError(f"{type(pipeline).__name__} has no text encoder {name!r}; it has: {', '.join(known)}")
        if isinstance(current, CLIPTextModel | CLIPTextModelWithProjection):
            new[name], _ = exchanged(current, components[name.replace("text_encoder", "tokenizer")], source)
        else:
            new[name] = _other(name, current, source)
    kind: Any = type(pipeline)
    hardened: P = kind.from_pipe(pipeline, **new)
    reader = load_defence(defence) or getattr(pipeline, "_defence", None)  # one that was given before stays
    if reader is not None and isinstance(hardened, LeafPipeline):
        hardened._defence = reader
    elif reader is not None:
        _defend(hardened, reader)
    return hardened


def _other(name: str, current: nn.Module, source: str | Path | nn.Module | TextEncoder) -> nn.Module:
    """A text encoder that is no CLIP, in the place of the current one."""
    if isinstance(source, TextEncoder):
        source = source.module
    if not isinstance(source, nn.Module):
        config = load_config(str(source), {})
        check_settings(name, current, config)
        source, _ = load_model(type(current), str(source), {}, config=config)
    if lora_layers(source):
        raise ValueError(f"{name}: the new text encoder carries a LoRA: merge it first (merge_and_unload of peft)")
    check_settings(name, current, source.config)
    before, after = (
        {key: tuple(value.shape) for key, value in each.state_dict().items()} for each in (current, source)
    )
    wrong = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    if type(source) is not type(current) or wrong:
        such = f"; tensors that differ: {len(wrong)}, such as {wrong[0]}" if wrong else ""
        raise ValueError(
            f"{name}: the pipeline has a {type(current).__name__}, the new text encoder is a {type(source).__name__}{such}"
        )
    check_finite(name, source.state_dict().items())
    old = next(current.parameters())
    return source.to(device=old.device, dtype=old.dtype).eval()


def check_settings(name: str, current: nn.Module, config: Any) -> None:
    """ValueError that names the settings in which a text encoder's configuration differs from the current one's."""
    own: Any = current.config
    before, after = (settings(each.to_dict()) for each in (own, config))
    differing = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    if misfits := [f"{key}: {before.get(key)} here, {after.get(key)} there" for key in differing]:
        raise ValueError(f"{name}: the text encoder does not fit the pipeline: {'; '.join(misfits)}")


def _defend(pipeline: Any, defence: Defence) -> None:
    """Have the pipeline's `encode_prompt` read the prompts after the defence."""
    stock = pipeline.encode_prompt
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name in PROMPTS:
            if (prompt := bound.arguments.get(name)) is not None:
                bound.arguments[name] = defence([prompt])[0] if isinstance(prompt, str) else defence(prompt)
        return stock(*bound.args, **bound.kwargs)

    pipeline.encode_prompt = encode_prompt
    pipeline._defence = defence
