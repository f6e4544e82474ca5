"""Robust text encoders for diffusion models: attack them, finetune them, swap them in, and measure what it buys."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from leaf_diffusion import _compat as _compat

if TYPE_CHECKING:
    from leaf_diffusion.attacks import Attack, AttackResult, Charmer, ExactOrBeam, Exhaustive, LeafAttack, RandomTypos
    from leaf_diffusion.diffusion.harden import harden
    from leaf_diffusion.diffusion.pipeline_scorer import attack
    from leaf_diffusion.encoders import load_text_encoder
    from leaf_diffusion.scoring import Drift, Margin, MeanScorer, Scorer, Toward
    from leaf_diffusion.text import NoNewWords, PublishedNoNewWords

__version__ = "0.1.0"

_HOMES = {
    "leaf_diffusion.attacks": (
        "Attack",
        "AttackResult",
        "Charmer",
        "ExactOrBeam",
        "Exhaustive",
        "LeafAttack",
        "RandomTypos",
    ),
    "leaf_diffusion.diffusion.harden": ("harden",),
    "leaf_diffusion.diffusion.pipeline_scorer": ("attack",),
    "leaf_diffusion.encoders": ("load_text_encoder",),
    "leaf_diffusion.scoring": ("Drift", "Margin", "MeanScorer", "Scorer", "Toward"),
    "leaf_diffusion.text": ("NoNewWords", "PublishedNoNewWords"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Attack",
    "AttackResult",
    "Charmer",
    "Drift",
    "ExactOrBeam",
    "Exhaustive",
    "LeafAttack",
    "Margin",
    "MeanScorer",
    "NoNewWords",
    "PublishedNoNewWords",
    "RandomTypos",
    "Scorer",
    "Toward",
    "__version__",
    "attack",
    "harden",
    "load_text_encoder",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that `import leaf_diffusion` is quick."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
