"""What a figure under attack says of robustness: the one place of the words that tables, reports, cards and commands quote."""

from __future__ import annotations

from collections.abc import Collection

INVERTED = "What a search reads back is the least that an embedding gives away; a better one may read more."


def under_attack(exact: bool = False) -> str:
    """What a figure under attack is. exact: every allowed edit was tried, by the very thing that is measured."""
    return (
        "exact, every allowed edit was tried"
        if exact
        else "an upper bound on robustness, as a search may miss the worst"
    )


def attack_note(exact: Collection[bool], *, higher_is_better: bool = True, difference: bool = False) -> str:
    """What stands under figures some of which are `exact`, or under differences of them."""
    if all(exact):
        return f"Under attack: {under_attack(exact=True)}."
    if difference:
        return f"Under attack: each side is {under_attack()}; their difference bounds nothing."
    rest = f"; where “exact” is said, {under_attack(exact=True).partition(', ')[2]}" if any(exact) else ""
    return (
        f"Under attack: {under_attack()}: the true figure is at {'most' if higher_is_better else 'least'} this{rest}."
    )
