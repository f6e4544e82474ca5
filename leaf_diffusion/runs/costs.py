"""The fields of what a swap-cost run keeps, and of its copy in another run's results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leaf_diffusion.runs.fields import COUNT, NUMBER, TEXT, Field, Fields, misfit

_LIST = Field("a list of objects", lambda value: isinstance(value, list) and all(isinstance(o, dict) for o in value))
COST_ROW: Fields = {
    **dict.fromkeys(("condition", "encoder", "protocol", "metric"), TEXT),
    "baseline": TEXT.or_null,
    **dict.fromkeys(("mean", "ci_low", "ci_high"), NUMBER.or_null),
    "n": COUNT,
}


def misfits(found: Mapping[str, Any]) -> str:
    """What is wrong with recorded costs of conditions; "" where nothing is."""
    if wrong := misfit(found, {"rows": _LIST, "conditions": _LIST}):
        return wrong
    for number, row in enumerate(found["rows"]):
        if wrong := misfit(row, COST_ROW):
            return f"row {number}: {wrong}"
    for number, each in enumerate(found["conditions"]):
        if wrong := misfit(each, {"key": TEXT, "title": TEXT}):
            return f"condition {number}: {wrong}"
    return ""
