"""Attacks on prompts, one file each."""

from __future__ import annotations

import typing
from collections.abc import Callable

import yaml

from leaf_diffusion.attacks.base import Allowed, Attack, AttackResult
from leaf_diffusion.attacks.charmer import Charmer
from leaf_diffusion.attacks.exact_or_beam import ExactOrBeam
from leaf_diffusion.attacks.exhaustive import Exhaustive
from leaf_diffusion.attacks.genetic import Genetic
from leaf_diffusion.attacks.leaf import LeafAttack
from leaf_diffusion.attacks.noise import (
    WORST,
    Homoglyphs,
    Invisible,
    Keyboard,
    MissingSpaces,
    Noise,
    Punctuation,
    Reordered,
    Scanner,
    SwappedLetters,
)
from leaf_diffusion.attacks.search import argbest, best_few
from leaf_diffusion.attacks.tokens import TokenSubstitution
from leaf_diffusion.attacks.typos import RandomTypos
from leaf_diffusion.attacks.words import WordSubstitution
from leaf_diffusion.command_line import did_you_mean

__all__ = [
    "ATTACKS",
    "NOISE",
    "Allowed",
    "Attack",
    "AttackResult",
    "Charmer",
    "ExactOrBeam",
    "Exhaustive",
    "Genetic",
    "Homoglyphs",
    "Invisible",
    "Keyboard",
    "LeafAttack",
    "MissingSpaces",
    "Noise",
    "Punctuation",
    "RandomTypos",
    "Reordered",
    "Scanner",
    "SwappedLetters",
    "TokenSubstitution",
    "WordSubstitution",
    "argbest",
    "attack_from_name",
    "attack_from_text",
    "best_few",
    "kind_of",
]

_EVERYDAY: tuple[type[Noise], ...] = (Keyboard, Scanner, SwappedLetters, MissingSpaces, Punctuation)
_KINDS: tuple[type[Noise], ...] = (*_EVERYDAY, Homoglyphs, Invisible, Reordered)
NOISE: dict[str, type[Noise]] = {noise.name: noise for noise in _KINDS}
"""The kinds of noise by name."""
_SEARCHES: tuple[type[Attack], ...] = (
    ExactOrBeam, Charmer, LeafAttack, Exhaustive, RandomTypos, Genetic, TokenSubstitution, WordSubstitution,
)  # fmt: skip
ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in (*_SEARCHES, *_KINDS)}
"""Every attack by the name that configurations use; "worst-" before a kind of noise searches for its worst slips."""


def kind_of(label: str | None) -> type[Attack]:
    """The attack of a label in a file, and so what its `k` counts: characters where nobody says, or another tool made it."""
    return ATTACKS.get((label or "").removeprefix(WORST), Attack)


def attack_from_name(name: str, **params: object) -> Attack:
    """The attack that a configuration names, with its hyper-parameters; ValueError for an unknown name or parameter."""
    kind = name.removeprefix(WORST)
    if kind not in ATTACKS or (kind != name and kind not in NOISE):
        worst = [WORST + each for each in NOISE]
        close = did_you_mean(name, [*ATTACKS, *worst])
        raise ValueError(f"unknown attack {name!r}{close or ':'} choose one of {', '.join([*ATTACKS, *worst])}")
    make: Callable[..., Attack] = ATTACKS[kind]
    known = ATTACKS[kind].parameters()
    if unknown := sorted(set(params) - set(known)):
        raise ValueError(
            f"the attack {name!r} has no parameter {', '.join(unknown)}: it takes {', '.join(known) or 'none'}"
        )
    return make(**(params if kind == name else {"worst": True} | params))


def attack_from_text(text: str) -> Attack:
    """The attack that a text names, with its parameters behind a colon: "charmer", "leaf:rho=20,slots=4"."""
    name, _, rest = text.partition(":")
    types = typing.get_type_hints(type(attack_from_name(name)))  # an unknown name is said before an unknown parameter
    params: dict[str, object] = {}
    for each in filter(None, rest.split(",")):
        key, equals, value = each.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: write the parameters of an attack as in leaf:rho=20,slots=4")
        kind = types.get(key := key.strip().replace("-", "_"), str)
        read = value if kind is str else yaml.safe_load(value)
        takes_float = float in (kind, *typing.get_args(kind))
        params[key] = read = float(read) if takes_float and type(read) is int else read
        if not isinstance(read, kind) or (isinstance(read, bool) and kind is not bool):
            raise ValueError(f"the attack {name!r}: {key} takes {getattr(kind, '__name__', kind)}, not {value!r}")
    return attack_from_name(name, **params)
