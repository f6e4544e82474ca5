"""Finetuning that makes a CLIP text encoder robust: TextFARE with the LEAF attack, and its control."""

from leaf_diffusion.finetune.captions import reachable_tokens, read_captions, split_captions
from leaf_diffusion.finetune.loop import TextFAREConfig, finetune_text_encoder
from leaf_diffusion.finetune.textfare import held_out_figures, textfare_loss

__all__ = [
    "TextFAREConfig",
    "finetune_text_encoder",
    "held_out_figures",
    "reachable_tokens",
    "read_captions",
    "split_captions",
    "textfare_loss",
]
