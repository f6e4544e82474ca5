"""Language models of transformers as text encoders: Qwen2, Qwen2.5-VL's text side, Qwen3, Gemma-2, Mistral, Llama."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import (
    Gemma2ForCausalLM,
    Gemma2Model,
    LlamaForCausalLM,
    LlamaModel,
    MistralForCausalLM,
    MistralModel,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from leaf_diffusion.encoders.sequence import SequenceTextEncoder

DECODERS = (Qwen2Model, Qwen2_5_VLTextModel, Qwen3Model, Gemma2Model, MistralModel, LlamaModel)
STORED: dict[str, tuple[type[PreTrainedModel], ...]] = {
    "qwen2": (Qwen2Model, Qwen2ForCausalLM),
    "qwen3": (Qwen3Model, Qwen3ForCausalLM),
    "gemma2": (Gemma2Model, Gemma2ForCausalLM),
    "mistral": (MistralModel, MistralForCausalLM),
    "llama": (LlamaModel, LlamaForCausalLM),
    "qwen2_5_vl": (Qwen2_5_VLForConditionalGeneration,),
    "qwen2_5_vl_text": (Qwen2_5_VLTextModel,),
}
"""Classes by the configuration's model_type. One that names itself there is loaded as it is, with its head: pipelines hold both
kinds, and what is finetuned is saved in the class that it came in."""
HEADS = ("lm_head.", "score.", "classifier.", "qa_outputs.")


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

    @classmethod
    def stored_as(cls, config: Any) -> tuple[type[PreTrainedModel], tuple[str, ...]]:
        known, named = STORED[config.model_type], (config.architectures or [""])[0]
        return next((each for each in known if each.__name__ == named), known[0]), HEADS

    def _forward(self, **told: Any) -> Any:
        return self.tower(use_cache=False, **told)
