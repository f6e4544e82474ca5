"""Finetuning that makes a CLIP text encoder robust: TextFARE with the LEAF attack, and its control."""

from leaf_diffusion.finetune.anchors import textfare_loss
from leaf_diffusion.finetune.captions import reachable_tokens, read_captions, split_captions
from leaf_diffusion.finetune.config import TextFAREConfig
from leaf_diffusion.finetune.textfare import finetune_text_encoder, held_out_figures

__all__ = [
    "TextFAREConfig",
    "finetune_text_encoder",
    "held_out_figures",
    "reachable_tokens",
    "read_captions",
    "split_captions",
    "textfare_loss",
]
