"""The typed records of a run: what stands in a line of records/*.jsonl, checked on writing and reading."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, TypeVar

import numpy as np
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
    words that the attack made, each in the pieces of the tokenizer; `exact`: no text that the search may make has a higher
    score."""

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
    exact: bool | None = None
    shattered: list[list[str]] = Field(default_factory=list)


class OfImage(Record):
    """A record of an image file. `sha256` and `size` (bytes) are the file's: `RunStore.append` fills them in. Runs from
    before they were recorded have none."""

    image: ImagePath
    sha256: Digest | None = None
    size: Count | None = None


class OfImages(Record):
    """A record of several image files; `sha256s` are theirs, as `sha256` is that of one."""

    images: list[ImagePath]
    sha256s: list[Digest] = Field(default_factory=list)


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


FIELDS = {
    "clip_score": "clip_score",
    "clip_score_attacked_caption": "clip_score_attacked_caption",
    "scene_accuracy": "scene_correct",
    "drift": "drift",
    "drift_features": "drift_features",
}
"""Metric -> field of a score record. Drift (pixel RMSE, 0 to 1) has the protocol "floor" beside it."""

SWAP_FIELDS = {"drift": "swap_drift", "drift_features": "swap_drift_features"}
"""The same of clean images: how far they are from the first encoder's of the same prompt and noise."""

Values = dict[str, float]
"""Prompt id -> value, the mean over noises."""
Key = tuple[str, str, str | None, int]
"""(encoder, protocol, source, k) of an image."""


def prompt_values(
    images: Iterable[ImageRecord], scores: Iterable[ScoreRecord], fields: Mapping[str, str] = FIELDS
) -> dict[tuple[Key, str], Values]:
    """The values of every (key, metric) that some image has a score for."""
    by_id = {score.id: score for score in scores}
    noises: dict[tuple[Key, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for image in images:
        key: Key = (image.encoder, image.protocol, image.source, image.k)
        for metric, name in fields.items():
            if image.protocol == "floor" and not metric.startswith("drift"):
                continue
            value = getattr(by_id.get(image.id), name, None)
            if value is not None:
                noises[key, metric][image.prompt_id].append(float(value))
    return {key: {prompt: float(np.mean(each)) for prompt, each in found.items()} for key, found in noises.items()}


M = TypeVar("M", bound=BaseModel)
R = TypeVar("R", bound=Record)


def parse(model: type[M], data: object) -> M:
    """`data`, JSON values, as a model. Raises ValueError that names the first field that does not fit."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ValueError(said(error)) from None


def as_model(model: type[R], record: Record) -> R:
    """A checked record as another model of the same line. Raises ValueError naming the field that does not fit."""
    return record if isinstance(record, model) else parse(model, record.model_dump(exclude_unset=True))


def said(error: ValidationError) -> str:
    """The first thing that does not fit, with its field."""
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return f"no JSON that can be read ({visible(first['msg'])})"
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
