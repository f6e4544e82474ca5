"""Language models of transformers as text encoders: Qwen2, Qwen2.5-VL's text side, Qwen3, Gemma-2, Mistral, Llama."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Gemma2Model, LlamaModel, MistralModel, Qwen2Model, Qwen3Model
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from leaf_diffusion.encoders.sequence import SequenceTextEncoder

DECODERS = (Qwen2Model, Qwen2_5_VLTextModel, Qwen3Model, Gemma2Model, MistralModel, LlamaModel)


class DecoderTextEncoder(SequenceTextEncoder):
    """A language model, of which the states are read and no next token. What it sees besides text is left out."""

    @classmethod
    def tower_of(cls, module: nn.Module) -> nn.Module:
        inner: Any = module
        while inner is not None and not isinstance(inner, DECODERS):
            # a head around the model, or vision beside it
            inner = getattr(inner, "language_model", None) or getattr(inner, "model", None)
        if isinstance(inner, DECODERS):
            return inner
        known = ", ".join(each.__name__ for each in DECODERS)
        raise ValueError(f"{type(module).__name__} holds no language model that is known here; known: {known}")

    def _forward(self, **told: Any) -> Any:
        return self.tower(use_cache=False, **told)
