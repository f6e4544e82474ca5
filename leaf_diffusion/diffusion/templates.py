"""How pipelines write a prompt for their T5 or language model, and where they cut it: one function a pipeline class.

Functions of the pipeline, as templates and longest prompts are attributes of pipelines or arguments of their calls. Read in
diffusers 0.42.1; `tests/pipelines/test_readings.py` compares each with its pipeline's own `encode_prompt`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers

from leaf_diffusion.diffusion.pipeline_encoder import cleans_captions
from leaf_diffusion.tokens.reading import Lowered, Reading


def default(pipeline: Any, name: str) -> Any:
    """What the pipeline's own call gives to an argument unless told otherwise."""
    return inspect.signature(type(pipeline).__call__).parameters[name].default


def padded_t5(pipeline: Any) -> Reading:
    """FLUX.1 and SD3: the states of the padding are given too, and T5 attends to it."""
    return Reading(default(pipeline, "max_sequence_length"), padded=True, masked=False)


@dataclass(frozen=True)
class CleanedCaption:
    """A prompt as a pipeline class cleans captions (addresses, markup, signs), twice, as it does itself."""

    pipeline: type

    @property
    def name(self) -> str:
        """What it is stored by."""
        return f"caption:{self.pipeline.__name__}"

    def __call__(self, text: str) -> str:
        clean: Callable[[Any, str], str] = self.pipeline._clean_caption  # type: ignore[attr-defined]
        return clean(self.pipeline, clean(self.pipeline, text))


def caption_cleaner(stock: str) -> CleanedCaption:
    """As a stock class cleans captions. ValueError for names of no such class."""
    kind: Any = getattr(diffusers, stock, None)
    if not (
        isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline) and hasattr(kind, "_clean_caption")
    ):
        raise ValueError(f"there is no pipeline class {stock!r} that cleans captions")
    if not cleans_captions():
        raise ValueError(f"{stock} cleans captions with the packages beautifulsoup4 and ftfy: pip install both")
    return CleanedCaption(kind)


def _clean(pipeline: Any) -> CleanedCaption | Lowered:
    """What a pipeline does to prompts unless told otherwise. Named by the stock class, so that its Leaf class reads the same."""
    if not default(pipeline, "clean_caption") or not cleans_captions():
        return Lowered()
    stock = next(each for each in type(pipeline).__mro__ if "_clean_caption" in vars(each))
    return CleanedCaption(stock)


def pixart(pipeline: Any) -> Reading:
    return Reading(default(pipeline, "max_sequence_length"), clean=_clean(pipeline))


def sana(pipeline: Any) -> Reading:
    """Of a row filled up with padding the first and the last `longest - 1` states are given: the instruction's are not."""
    longest, lines = default(pipeline, "max_sequence_length"), default(pipeline, "complex_human_instruction")
    instruction = "\n".join(lines or [])
    if not instruction:
        return Reading(longest, clean=_clean(pipeline))
    told = len(pipeline.tokenizer.encode(instruction))
    return Reading(told + longest - 2, before=instruction, clean=_clean(pipeline), dropped=(1, max(1, told - 1)))


def lumina(pipeline: Any) -> Reading:
    instruction = default(pipeline, "system_prompt") or pipeline.system_prompt
    return Reading(default(pipeline, "max_sequence_length"), before=f"{instruction} <Prompt Start> ", layers=(-2,))


def z_image(pipeline: Any) -> Reading:
    return Reading(default(pipeline, "max_sequence_length"), chat=(("enable_thinking", True),), layers=(-2,))


def qwen_image(pipeline: Any) -> Reading:
    """Longer rows lose the states behind the longest prompt's, which in a causal tower is what cutting the row does."""
    before, after = pipeline.prompt_template_encode.split("{}")
    dropped = pipeline.prompt_template_encode_start_idx
    return Reading(dropped + default(pipeline, "max_sequence_length"), before, after, dropped=(0, dropped))


def klein(pipeline: Any) -> Reading:
    layers, longest = default(pipeline, "text_encoder_out_layers"), default(pipeline, "max_sequence_length")
    return Reading(longest, chat=(("enable_thinking", False),), layers=tuple(layers), padded=True)
