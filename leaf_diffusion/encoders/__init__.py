"""Text towers and their tokenizers behind one interface."""

from leaf_diffusion.encoders.base import Defence, Feature, Hidden, TextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.tokens.tokenizer import clip_tokenizer

__all__ = [
    "Defence",
    "Feature",
    "HFTextEncoder",
    "Hidden",
    "TextEncoder",
    "clip_tokenizer",
    "load_text_encoder",
]
