"""How pipelines read prompts with their T5 or language model: fast towers that give what `encode_prompt` gives.

One function a pipeline class, as templates and longest prompts are attributes of pipelines or arguments of their calls. Read in
diffusers 0.42.1; `tests/pipelines/test_readings.py` compares each with its pipeline's own `encode_prompt`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from leaf_diffusion.diffusion.pipeline_encoder import cleans_captions
from leaf_diffusion.encoders.base import Defence, TextEncoder
from leaf_diffusion.encoders.bidirectional import BidirectionalTextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.encoders.decoder import DecoderTextEncoder
from leaf_diffusion.encoders.sequence import SequenceTextEncoder
from leaf_diffusion.tokens.reading import Lowered, Reading


def default(pipeline: Any, name: str) -> Any:
    """What the pipeline's own call gives to an argument unless told otherwise."""
    return inspect.signature(type(pipeline).__call__).parameters[name].default


def _t5(pipeline: Any) -> Reading:
    """FLUX.1 and SD3: the states of the padding are given too, and T5 attends to it."""
    return Reading(default(pipeline, "max_sequence_length"), padded=True, masked=False)


@dataclass(frozen=True)
class CleanedCaption:
    """A prompt as a pipeline class cleans captions (addresses, markup, signs), twice, as it does itself."""

    pipeline: type

    @property
    def name(self) -> str:
        return f"caption:{self.pipeline.__name__}"

    def __call__(self, text: str) -> str:
        clean: Callable[[Any, str], str] = self.pipeline._clean_caption  # type: ignore[attr-defined]
        return clean(self.pipeline, clean(self.pipeline, text))


def _clean(pipeline: Any) -> CleanedCaption | Lowered:
    """What a pipeline does to prompts unless told otherwise."""
    if not (default(pipeline, "clean_caption") and cleans_captions()):
        return Lowered()
    return CleanedCaption(next(each for each in type(pipeline).__mro__ if "_clean_caption" in vars(each)))


def caption_cleaner(stock: str) -> CleanedCaption:
    """As a stock class of `READINGS` cleans captions. ValueError for other names."""
    kind: Any = getattr(diffusers, stock) if any(stock == name for name, _ in READINGS) else None
    if not hasattr(kind, "_clean_caption"):
        raise ValueError(f"there is no pipeline class {stock!r} known here that cleans captions")
    if not cleans_captions():
        raise ValueError(f"{stock} cleans captions with the packages beautifulsoup4 and ftfy: pip install both")
    return CleanedCaption(kind)


def _pixart(pipeline: Any) -> Reading:
    return Reading(default(pipeline, "max_sequence_length"), clean=_clean(pipeline))


def _sana(pipeline: Any) -> Reading:
    """Of a row filled up with padding the first and the last `longest - 1` states are given: the instruction's are not."""
    longest, lines = default(pipeline, "max_sequence_length"), default(pipeline, "complex_human_instruction")
    instruction = "\n".join(lines or [])
    if not instruction:
        return Reading(longest, clean=_clean(pipeline))
    told = len(pipeline.tokenizer.encode(instruction))
    return Reading(told + longest - 2, before=instruction, clean=_clean(pipeline), dropped=(1, max(1, told - 1)))


def _lumina(pipeline: Any) -> Reading:
    instruction = default(pipeline, "system_prompt") or pipeline.system_prompt
    return Reading(default(pipeline, "max_sequence_length"), before=f"{instruction} <Prompt Start> ", layers=(-2,))


def _z_image(pipeline: Any) -> Reading:
    return Reading(default(pipeline, "max_sequence_length"), chat=(("enable_thinking", True),), layers=(-2,))


def _qwen_image(pipeline: Any) -> Reading:
    """Longer rows lose the states behind the longest prompt's, which in a causal tower is what cutting the row does."""
    before, after = pipeline.prompt_template_encode.split("{}")
    dropped = pipeline.prompt_template_encode_start_idx
    return Reading(dropped + default(pipeline, "max_sequence_length"), before, after, dropped=(0, dropped))


def _klein(pipeline: Any) -> Reading:
    layers, longest = default(pipeline, "text_encoder_out_layers"), default(pipeline, "max_sequence_length")
    return Reading(longest, chat=(("enable_thinking", False),), layers=tuple(layers), padded=True)


READINGS: dict[tuple[str, str], tuple[Callable[[Any], Reading], type[SequenceTextEncoder]]] = {
    ("FluxPipeline", "text_encoder_2"): (_t5, BidirectionalTextEncoder),
    ("StableDiffusion3Pipeline", "text_encoder_3"): (_t5, BidirectionalTextEncoder),
    ("PixArtAlphaPipeline", "text_encoder"): (_pixart, BidirectionalTextEncoder),
    ("PixArtSigmaPipeline", "text_encoder"): (_pixart, BidirectionalTextEncoder),
    ("SanaPipeline", "text_encoder"): (_sana, DecoderTextEncoder),
    ("Lumina2Pipeline", "text_encoder"): (_lumina, DecoderTextEncoder),
    ("ZImagePipeline", "text_encoder"): (_z_image, DecoderTextEncoder),
    ("QwenImagePipeline", "text_encoder"): (_qwen_image, DecoderTextEncoder),
    ("Flux2KleinPipeline", "text_encoder"): (_klein, DecoderTextEncoder),
}
"""By the name of the stock class and of the component."""


def part_encoder(pipeline: Any, part: str, *, name: str | None = None) -> TextEncoder:
    """A pipeline's text encoder of whatever kind, as it reads prompts with it. ValueError as in `sequence_encoder`."""
    module = getattr(pipeline, part, None)
    if isinstance(module, CLIPTextModel | CLIPTextModelWithProjection):
        return HFTextEncoder(module, getattr(pipeline, part.replace("text_encoder", "tokenizer")), name=name)
    return sequence_encoder(pipeline, part, name=name)


def sequence_encoder(
    pipeline: Any,
    part: str,
    *,
    name: str | None = None,
    defence: Defence | None = None,
    module: nn.Module | None = None,
) -> SequenceTextEncoder:
    """The fast tower of a pipeline's T5 or language model, which gives what its denoiser is given of it; or `module` in its place.

    ValueError where the class, or the model it holds, is not known: `PipelineEncoder` reads any pipeline.
    """
    known = next((found for each in type(pipeline).__mro__ if (found := READINGS.get((each.__name__, part)))), None)
    current = module if module is not None else getattr(pipeline, part, None)
    if known is None or current is None:
        what = f"its {part} is not known here" if current is not None else f"it has no {part}"
        raise ValueError(f"{type(pipeline).__name__}: {what}; PipelineEncoder reads any pipeline")
    reading, kind = known
    tokenizer = getattr(pipeline, part.replace("text_encoder", "tokenizer"))
    return kind(current, tokenizer, reading=reading(pipeline), name=name, defence=defence)
