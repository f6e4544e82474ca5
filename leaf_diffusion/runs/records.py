"""The typed records of a run: what stands in a line of records/*.jsonl and in results.json, checked on writing and reading."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetPydanticSchema, StringConstraints, ValidationError
from pydantic_core import ErrorDetails, core_schema

from leaf_diffusion.text.visible import visible

IMAGE = re.compile(r"images/[0-9a-f]{8,64}\.png")
LARGEST_COUNT, LARGEST_NUMBER = 10**15, 1e300


def _number(_: object, __: object) -> core_schema.CoreSchema:
    """An int stays an int and a float a float; true and false are neither."""
    whole = core_schema.int_schema(strict=True, ge=-int(LARGEST_NUMBER), le=int(LARGEST_NUMBER))
    real = core_schema.float_schema(strict=True, ge=-LARGEST_NUMBER, le=LARGEST_NUMBER, allow_inf_nan=False)
    return core_schema.union_schema(
        [whole, real],
        custom_error_type="number",
        custom_error_message="Input should be a finite number",
    )


Number = Annotated[float, GetPydanticSchema(_number)]
"""A finite number, int or float, of at most 1e300."""
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
"""A whole number from 0 to 10^15."""
ImagePath = Annotated[str, StringConstraints(pattern=rf"^{IMAGE.pattern}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A sha256, 64 hexadecimal digits."""
Protocol = Literal["clean", "adaptive", "transfer", "floor"]


class Typed(BaseModel):
    """Values of the stated types and no others: nothing is converted, no number is NaN. Further fields are kept."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)


class Record(Typed):
    """One unit of work. Subclasses name their fields; a field with a default may be missing in the file."""

    id: str


class AttackRecord(Record):
    """An attacked prompt. `source`: the encoder it was found on; `queries`: encoder calls of the search; `shattered`: the
    words that the attack made, each in the pieces of the tokenizer."""

    prompt_id: str
    prompt: str
    perturbed: str
    source: str
    k: Count
    truncated: bool
    attack: str | None = None
    constraint: str | None = None
    distance: Number | None = None
    score: Number | None = None
    queries: Number | None = None
    unseen_tokens: Number | None = None
    shattered: list[list[str]] = Field(default_factory=list)


class OfImage(Record):
    """A record of an image file. `sha256` and `size` (bytes) are the file's: `RunStore.append` fills them in. Runs from
    before they were recorded have none."""

    image: ImagePath
    sha256: Digest | None = None
    size: Count | None = None


class ImageRecord(OfImage):
    """An image. `prompt`: what was asked; `original`: the clean prompt; `given`: what the encoder read after its defence."""

    prompt_id: str
    prompt: str
    original: str
    encoder: str
    protocol: Protocol
    source: str | None
    k: Count
    seed_index: Count
    given: str
    truncated: bool


class ScoreRecord(Record):
    """The scores of the image of the same id; None where nobody judged."""

    scene_correct: bool | None = None
    clip_score: Number | None = None
    clip_score_attacked_caption: Number | None = None
    drift: Number | None = None
    drift_features: Number | None = None
    swap_drift: Number | None = None
    swap_drift_features: Number | None = None


KINDS: Mapping[str, type[Record]] = {"attacks": AttackRecord, "images": ImageRecord, "scores": ScoreRecord}
"""The records of the text-to-image evaluation."""


class ResultRow(Typed):
    """A row of results.json: one metric of one encoder, or its paired difference to `baseline`. Experiments add columns."""

    encoder: str
    baseline: str | None
    protocol: str
    source: str | None
    attack: str | None
    constraint: str | None
    k: Count | None
    metric: str
    mean: Number | None
    ci_low: Number | None
    ci_high: Number | None
    n: Count
    seeds: Count

    def column(self, name: str) -> Any:
        """A column by its name, an experiment's own too; None where the row lacks it."""
        return getattr(self, name, None)


M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], data: object) -> M:
    """`data`, JSON values, as a model. Raises ValueError that names the first field that does not fit."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ValueError(said(error)) from None


def said(error: ValidationError) -> str:
    """The first thing that does not fit, with its field."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = _field(first)
    if first["type"] == "missing":
        return f"{where} is missing"
    expected = visible(first["msg"]).replace("Input should", "has to", 1)
    return f"{where} {expected}, not {_short(first['input'])}"


def _field(error: ErrorDetails) -> str:
    place = [f'the field "{visible(part)}"' if isinstance(part, str) else f"item {part}" for part in error["loc"]]
    return ", ".join(place) or "it"


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
