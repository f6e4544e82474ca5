"""Attacks on prompts, one file each."""

from __future__ import annotations

import dataclasses
from typing import Any

from leaf_diffusion.attacks.base import Allowed, Attack, AttackResult
from leaf_diffusion.attacks.charmer import Charmer
from leaf_diffusion.attacks.exhaustive import Exhaustive
from leaf_diffusion.attacks.leaf import LeafAttack
from leaf_diffusion.attacks.search import argbest, best_few
from leaf_diffusion.attacks.typos import RandomTypos

__all__ = [
    "ATTACKS",
    "Allowed",
    "Attack",
    "AttackResult",
    "Charmer",
    "Exhaustive",
    "LeafAttack",
    "RandomTypos",
    "argbest",
    "attack_from_name",
    "best_few",
]

ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in (Charmer, LeafAttack, Exhaustive, RandomTypos)}
"""Every attack by the name that configurations use."""


def attack_from_name(name: str, **params: Any) -> Attack:
    """The attack that a configuration names, with its hyper-parameters; ValueError for an unknown name or parameter."""
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}: choose one of {', '.join(ATTACKS)}")
    attack = ATTACKS[name]
    known = [field.name for field in dataclasses.fields(attack)]  # type: ignore[arg-type]
    if unknown := sorted(set(params) - set(known)):
        raise ValueError(
            f"the attack {name!r} has no parameter {', '.join(unknown)}: it takes {', '.join(known) or 'none'}"
        )
    return attack(**params)
