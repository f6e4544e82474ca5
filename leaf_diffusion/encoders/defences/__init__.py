"""Defences on the prompt itself, before tokenization."""

from __future__ import annotations

from collections.abc import Callable

from leaf_diffusion.encoders.base import Defence
from leaf_diffusion.encoders.defences.canonical import Canonical
from leaf_diffusion.encoders.defences.caption_model import CaptionModel
from leaf_diffusion.encoders.defences.speller import Speller, english_speller
from leaf_diffusion.encoders.defences.visible import Visible

__all__ = ["DEFENCES", "Canonical", "CaptionModel", "Speller", "Visible", "english_speller"]

# the names that `defence=` takes
DEFENCES: dict[str, Callable[[], Defence]] = {"speller": english_speller, "visible": Visible, "canonical": Canonical}
