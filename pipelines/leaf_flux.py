"""FLUX.1 with a CLIP text encoder of your choice; T5, which writes the token states, is left as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from leaf_diffusion.diffusion.pipeline import LeafPipeline
from leaf_diffusion.encoders.base import Feature


class LeafFluxPipeline(LeafPipeline, FluxPipeline):
    """`FluxPipeline` that takes a robust CLIP text encoder (`text_encoder`) by name and can attack its own prompts.

    The denoiser is given CLIP's pooled state alone, unprojected, and that is what `attack` moves; the token states are those
    of T5 (`text_encoder_2`), which is neither exchanged nor attacked, so a robust CLIP protects a part of what FLUX reads.
    T5 is given as to the stock class: a module, or None to do without. Saved, it *is* a stock pipeline.
    """

    _stock: ClassVar[type] = FluxPipeline
    _towers: ClassVar[int] = 1
    _feature: ClassVar[Feature | None] = "pooled"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """As for the other Leaf pipelines: `text_encoder` (CLIP), `adapter`, `defence`; everything else as in diffusers."""
        return super().from_pretrained(pretrained_model_name_or_path, **_t5_apart(kwargs))

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | Path, **kwargs: Any) -> Self:
        """The same of one .safetensors file, which holds the denoiser."""
        return super().from_single_file(pretrained_model_link_or_path, **_t5_apart(kwargs))

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Self:
        """The same around another pipeline's components."""
        return super().from_pipe(pipeline, **_t5_apart(kwargs))

    def encode_prompt(self, prompt: Any, prompt_2: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the stock method, after the defence."""
        return super().encode_prompt(self._defended(prompt), self._defended(prompt_2), *args, **kwargs)


def _t5_apart(options: dict[str, Any]) -> dict[str, Any]:
    """FLUX's second text encoder is no CLIP to exchange but a component as any other."""
    t5 = {name: options.pop(name) for name in ("text_encoder_2",) if name in options}
    return {**options, "components": t5}
