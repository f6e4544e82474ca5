"""The fields of records and of results: what stands in each, checked where they are written and read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Field(NamedTuple):
    """name: what may stand there, for the message; fits: whether it does; needed: whether the field has to be there."""

    name: str
    fits: Callable[[Any], bool]
    needed: bool = True

    @property
    def or_null(self) -> Field:
        return Field(f"{self.name} or null", lambda value: value is None or self.fits(value), self.needed)

    @property
    def if_any(self) -> Field:
        return self._replace(needed=False)


Fields = Mapping[str, Field]

TEXT = Field("a text", lambda value: isinstance(value, str))
FLAG = Field("true or false", lambda value: isinstance(value, bool))
COUNT = Field("a whole number from 0 to 10^15", lambda value: type(value) is int and 0 <= value <= 10**15)
NUMBER = Field(
    "a finite number",
    lambda value: type(value) in (int, float) and abs(value) <= 1e300,
)
WORDS = Field(
    "lists of texts",
    lambda value: (
        isinstance(value, list)
        and all(isinstance(word, list) and all(isinstance(piece, str) for piece in word) for word in value)
    ),
)
IMAGE = re.compile(r"images/[0-9a-f]{8,64}\.png")
IMAGE_FIELD = Field(
    "images/<hexadecimal digits>.png", lambda value: isinstance(value, str) and IMAGE.fullmatch(value) is not None
)
PROTOCOLS = ("clean", "adaptive", "transfer", "floor")
PROTOCOL = Field(" or ".join(PROTOCOLS), lambda value: value in PROTOCOLS)

RECORDS: Mapping[str, Fields] = {
    "attacks": {
        "prompt_id": TEXT,
        "prompt": TEXT,
        "perturbed": TEXT,
        "source": TEXT,
        "k": COUNT,
        "truncated": FLAG,
        "attack": TEXT.or_null.if_any,
        "constraint": TEXT.or_null.if_any,
        "distance": NUMBER.or_null.if_any,
        "score": NUMBER.or_null.if_any,
        "queries": NUMBER.or_null.if_any,
        "unseen_tokens": NUMBER.or_null.if_any,
        "shattered": WORDS.if_any,
    },
    "images": {
        "prompt_id": TEXT,
        "prompt": TEXT,
        "original": TEXT,
        "encoder": TEXT,
        "protocol": PROTOCOL,
        "source": TEXT.or_null,
        "k": COUNT,
        "seed_index": COUNT,
        "image": IMAGE_FIELD,
        "given": TEXT,
        "truncated": FLAG,
    },
    "scores": {
        "scene_correct": FLAG.or_null.if_any,
        "clip_score": NUMBER.or_null.if_any,
        "clip_score_attacked_caption": NUMBER.or_null.if_any,
        "drift": NUMBER.or_null.if_any,
        "drift_features": NUMBER.or_null.if_any,
        "swap_drift": NUMBER.or_null.if_any,
        "swap_drift_features": NUMBER.or_null.if_any,
    },
}
"""Kind -> fields of the records of the text-to-image evaluation; a record may have more."""

ROW: Fields = {
    "encoder": TEXT,
    "baseline": TEXT.or_null,
    "protocol": TEXT,
    "source": TEXT.or_null,
    "attack": TEXT.or_null,
    "constraint": TEXT.or_null,
    "k": COUNT.or_null,
    "metric": TEXT,
    "mean": NUMBER.or_null,
    "ci_low": NUMBER.or_null,
    "ci_high": NUMBER.or_null,
    "n": COUNT,
    "seeds": COUNT,
}
"""The columns of a row of results.json, whatever the experiment; a row may have more."""


def record_fields(settings: Mapping[str, Any], kind: str) -> Fields | None:
    """The fields of a run's records of a kind; None where the run is another experiment's, whose records are its own."""
    mine = settings.get("experiment", "t2i-robustness") == "t2i-robustness"
    return RECORDS.get(kind) if mine else None


def misfit(values: Mapping[str, Any], fields: Fields) -> str:
    """What is wrong with the first field that does not fit; "" where all do."""
    for name, field in fields.items():
        if name not in values:
            if field.needed:
                return f'the field "{name}" is missing'
        elif not field.fits(values[name]):
            return f'the field "{name}" has to be {field.name}, not {_short(values[name])}'
    return ""


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
