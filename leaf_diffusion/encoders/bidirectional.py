"""Bidirectional text encoders of transformers: T5, UMT5 and BERT."""

from __future__ import annotations

from torch import nn
from transformers import BertModel, T5EncoderModel, UMT5EncoderModel

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
