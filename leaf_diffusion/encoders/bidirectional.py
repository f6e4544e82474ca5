"""Bidirectional text encoders of transformers: T5, UMT5 and BERT."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import BertModel, PreTrainedModel, T5EncoderModel, UMT5EncoderModel

from leaf_diffusion.encoders.sequence import SequenceTextEncoder


class BidirectionalTextEncoder(SequenceTextEncoder):
    """`T5EncoderModel`, `UMT5EncoderModel` or `BertModel`. Every state depends on all tokens, so nothing is shared between
    candidates but what is the same after tokenization; padding is not computed unless the tower attends to it."""

    causal = False

    @classmethod
    def tower_of(cls, module: nn.Module) -> nn.Module:
        if isinstance(module, T5EncoderModel | UMT5EncoderModel | BertModel):
            return module
        raise ValueError(f"{type(module).__name__} is no T5EncoderModel, UMT5EncoderModel or BertModel of transformers")

    @classmethod
    def stored_as(cls, config: Any) -> tuple[type[PreTrainedModel], tuple[str, ...]]:
        return STORED[config.model_type]

    @property
    def table(self) -> nn.Embedding:
        # T5's `shared` has the same weight, but is not what is called
        inner: Any = self.tower if isinstance(self.tower, BertModel) else self.tower.encoder
        return inner.get_input_embeddings()


STORED: dict[str, tuple[type[PreTrainedModel], tuple[str, ...]]] = {
    "t5": (T5EncoderModel, ("decoder.", "lm_head.")),
    "umt5": (UMT5EncoderModel, ("decoder.", "lm_head.")),
    "bert": (BertModel, ("cls.", "classifier.", "qa_outputs.")),
}
"""By the configuration's model_type: the class without decoder and heads, and how the tensors of these begin."""
