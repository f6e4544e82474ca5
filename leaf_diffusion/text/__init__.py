"""Text: the edit space, the constraints on it and the English word list."""

from leaf_diffusion.text.constraints import Constraint, NoNewWords, PublishedNoNewWords, constraint_from_name
from leaf_diffusion.text.edits import (
    ALPHABET,
    DELETE,
    Candidates,
    apply_edit,
    distance,
    n_slots,
    neighbours,
    present,
    random_edits,
    slot_edits,
)
from leaf_diffusion.text.words import load_words, pieces, split_words, word_distance

__all__ = [
    "ALPHABET",
    "DELETE",
    "Candidates",
    "Constraint",
    "NoNewWords",
    "PublishedNoNewWords",
    "apply_edit",
    "constraint_from_name",
    "distance",
    "load_words",
    "n_slots",
    "neighbours",
    "pieces",
    "present",
    "random_edits",
    "slot_edits",
    "split_words",
    "word_distance",
]
