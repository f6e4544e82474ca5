"""Attacks on prompts, one file each."""

from __future__ import annotations

import dataclasses
from typing import Any

from leaf_diffusion.attacks.base import Allowed, Attack, AttackResult
from leaf_diffusion.attacks.charmer import Charmer
from leaf_diffusion.attacks.exhaustive import Exhaustive
from leaf_diffusion.attacks.leaf import LeafAttack
from leaf_diffusion.attacks.noise import (
    Homoglyphs,
    Keyboard,
    MissingSpaces,
    Noise,
    Punctuation,
    Scanner,
    SwappedLetters,
)
from leaf_diffusion.attacks.search import argbest, best_few
from leaf_diffusion.attacks.tokens import TokenSubstitution
from leaf_diffusion.attacks.typos import RandomTypos

__all__ = [
    "ATTACKS",
    "NOISE",
    "Allowed",
    "Attack",
    "AttackResult",
    "Charmer",
    "Exhaustive",
    "Homoglyphs",
    "Keyboard",
    "LeafAttack",
    "MissingSpaces",
    "Noise",
    "Punctuation",
    "RandomTypos",
    "Scanner",
    "SwappedLetters",
    "TokenSubstitution",
    "argbest",
    "attack_from_name",
    "best_few",
]

_KINDS: tuple[type[Noise], ...] = (Keyboard, Scanner, SwappedLetters, MissingSpaces, Homoglyphs, Punctuation)
NOISE: dict[str, type[Noise]] = {noise.name: noise for noise in _KINDS}
"""The kinds of everyday noise by name."""
_SEARCHES: tuple[type[Attack], ...] = (Charmer, LeafAttack, Exhaustive, RandomTypos, TokenSubstitution)
ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in (*_SEARCHES, *_KINDS)}
"""Every attack by the name that configurations use; "worst-" before a kind of noise searches for its worst slips."""
WORST = "worst-"


def attack_from_name(name: str, **params: Any) -> Attack:
    """The attack that a configuration names, with its hyper-parameters; ValueError for an unknown name or parameter."""
    kind = name.removeprefix(WORST)
    if kind not in ATTACKS or (kind != name and kind not in NOISE):
        worst = ", ".join(WORST + each for each in NOISE)
        raise ValueError(f"unknown attack {name!r}: choose one of {', '.join(ATTACKS)}, {worst}")
    attack = ATTACKS[kind]
    known = [field.name for field in dataclasses.fields(attack)]  # type: ignore[arg-type]
    if unknown := sorted(set(params) - set(known)):
        raise ValueError(
            f"the attack {name!r} has no parameter {', '.join(unknown)}: it takes {', '.join(known) or 'none'}"
        )
    return attack(**(params if kind == name else {"worst": True} | params))
