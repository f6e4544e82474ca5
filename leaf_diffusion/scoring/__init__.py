"""How strong an attack is: objectives, and the scorers that evaluate candidates."""

from leaf_diffusion.scoring.mean import MeanScorer
from leaf_diffusion.scoring.objectives import Drift, Goal, Margin, Objective, Toward
from leaf_diffusion.scoring.scorer import AnyScorer, BoundScore, Precision, Scorer

__all__ = [
    "AnyScorer",
    "BoundScore",
    "Drift",
    "Goal",
    "Margin",
    "MeanScorer",
    "Objective",
    "Precision",
    "Scorer",
    "Toward",
]
