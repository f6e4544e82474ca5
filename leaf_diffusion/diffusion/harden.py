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
from leaf_diffusion.encoders.swap import exchanged
from leaf_diffusion.encoders.swap_sequence import exchanged_sequence

P = TypeVar("P")
PROMPTS = ("prompt", "prompt_2", "prompt_3", "prompt_4")
"""Arguments of `encode_prompt` that a defence reads. Negative prompts are the user's own words."""


def harden(pipeline: P, *, defence: str | Defence | None = None, **encoders: str | Path | nn.Module | TextEncoder) -> P:
    """A pipeline of the same class that shares everything with `pipeline` but the text encoders that are given by the names of
    their components: `harden(pipe, text_encoder=..., text_encoder_2=...)`.

    A CLIP is given as to the Leaf pipelines (a folder, a Hub id, "openclip:...", a module); any other text encoder (T5, a
    language model) as a module, or a folder or Hub id that transformers loads in the class of the old one. It has to have the
    old one's tensors and settings, gets its device and dtype, and reads with the pipeline's tokenizer. `defence`: what prompts
    go through first, as in `load_text_encoder`; one that `pipeline` has stays, and none is saved. (In FLUX, Qwen-Image and FLUX.2
    klein it reads negative prompts as well, which their stock calls give to `encode_prompt` as prompts; the Leaf classes tell them
    apart.) A module is moved and cast as it is, not copied.

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
            new[name] = exchanged_sequence(name, current, source)
    kind: Any = type(pipeline)
    hardened: P = kind.from_pipe(pipeline, **new)
    reader = load_defence(defence) or getattr(pipeline, "_defence", None)  # one that was given before stays
    if reader is not None and isinstance(hardened, LeafPipeline):
        hardened._defence = reader
    elif reader is not None:
        _defend(hardened, reader)
    return hardened


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
