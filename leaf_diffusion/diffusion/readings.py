"""Fast towers of pipelines' T5 and language models: they give what `encode_prompt` gives."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from leaf_diffusion.diffusion.families import family_of
from leaf_diffusion.encoders.base import Defence, TextEncoder
from leaf_diffusion.encoders.bidirectional import BidirectionalTextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.encoders.decoder import DecoderTextEncoder
from leaf_diffusion.encoders.sequence import SequenceTextEncoder

TOWERS: dict[str, type[SequenceTextEncoder]] = {"t5": BidirectionalTextEncoder, "decoder": DecoderTextEncoder}
"""By the kind of a family's text encoder."""


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
    try:
        known = next((each for each in family_of(pipeline).text_encoders if each.part == part), None)
    except ValueError:
        known = None
    current = module if module is not None else getattr(pipeline, part, None)
    if known is None or known.reading is None or current is None:
        what = f"its {part} is not known here" if current is not None else f"it has no {part}"
        raise ValueError(f"{type(pipeline).__name__}: {what}; PipelineEncoder reads any pipeline")
    tokenizer = getattr(pipeline, known.tokenizer)
    return TOWERS[known.kind](current, tokenizer, reading=known.reading(pipeline), name=name, defence=defence)
