"""How many queries an attacker needs: accuracy against random edits, exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from leaf_diffusion.evaluation.experiment import Setting
from leaf_diffusion.evaluation.tasks.units import Noted, unit_name
from leaf_diffusion.reports.metrics import OVER_QUERIES, SENSITIVITY, TEXT_ACCURACY
from leaf_diffusion.runs.experiment_records import ClassifiedText, MinimalPairs

PAIR = "pair "
"""What the numbers of minimal pairs are noted with: those of texts have nothing before them."""
QUERIES = (1, 3, 10, 30, 100, 300, 1000, 3000)


def query_numbers(most: int) -> list[int]:
    """Numbers of random edits to give the accuracy at, up to all `most` of them."""
    return [*(q for q in QUERIES if q < most), most] if most else []


def against_random(edits: int, flips: int, queries: int) -> float:
    """The probability that `queries` distinct ones of `edits` (all of them where there are fewer) hold none of the
    `flips` among them."""
    queries = min(queries, edits)
    if queries > edits - flips:
        return 0.0
    return math.exp(_log_choose(edits - flips, queries) - _log_choose(edits, queries))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def accuracies(records: Sequence[ClassifiedText]) -> Noted:
    """Accuracy of each text: clean, under every edit, under so many random edits, under each search."""
    found = Noted()
    most = max((each.edits for record in records for each in record.exact), default=0)
    for record in records:
        name, number = record.encoder, record.number
        found.note(Setting(name, TEXT_ACCURACY.key), number, record.right)
        for each in record.exact:
            place = ("adaptive", name, "exhaustive", each.constraint, 1)
            found.note(Setting(name, TEXT_ACCURACY.key, *place), number, record.right and not each.flips, exact=True)
            for queries in query_numbers(most):
                drawn = ("adaptive", name, "random edits", each.constraint, 1)
                setting = Setting(name, OVER_QUERIES.key, *drawn, more=(("queries", queries),))
                held = against_random(each.edits, each.flips, queries) if record.right else 0.0
                found.note(setting, number, held)
        for search in record.attacks:
            place = ("adaptive", name, search.label, search.constraint, search.k)
            held = record.right and search.held
            found.note(Setting(name, TEXT_ACCURACY.key, *place), number, held, exact=search.exact)
    return found.with_exact()


def sensitivities(records: Iterable[MinimalPairs]) -> Noted:
    """Whether each minimal pair is told apart."""
    found = Noted()
    for record in records:
        for i, told in enumerate(record.told):
            found.note(Setting(record.encoder, SENSITIVITY.key), unit_name(i, PAIR), told)
    return found


def mean_queries(records: Iterable[ClassifiedText]) -> dict[str, float]:
    """Encoder calls of each search, on average over the texts."""
    spent: dict[str, list[int]] = {}
    for record in records:
        for each in record.attacks:
            place = f"{record.encoder}, {each.attack}, n={each.n_positions}, k={each.k}, {each.constraint}"
            spent.setdefault(place, []).append(each.queries)
    return {place: sum(each) / len(each) for place, each in spent.items()}
