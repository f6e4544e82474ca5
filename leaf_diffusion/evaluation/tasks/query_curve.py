"""How many queries an attacker needs: accuracy against random edits, exactly."""

from __future__ import annotations

import math

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
