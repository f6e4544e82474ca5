"""reading.json: how prompts are read, beside the weights of a hardened encoder."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from leaf_diffusion.encoders import sources
from leaf_diffusion.tokens.reading import Reading

FILE = "reading.json"


class _Stored(BaseModel):
    """A `Reading` as JSON; `clean` by its name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    longest: int
    before: str
    after: str
    chat: dict[str, bool] | None
    clean: str | None
    layers: list[int]
    dropped: list[int]
    padded: bool
    masked: bool


def write_reading(reading: Reading, folder: Path) -> None:
    """Write the file. ValueError where what prompts go through first has no name that gives it back."""
    name = None if reading.clean is None else str(getattr(reading.clean, "name", ""))
    if name is not None and sources.cleaner(name) != reading.clean:
        raise ValueError(f"{reading.clean!r} cannot be stored: its name {name!r} stands for another one")
    stored = _Stored(
        longest=reading.longest, before=reading.before, after=reading.after, clean=name, layers=list(reading.layers),
        chat=None if reading.chat is None else dict(reading.chat), dropped=list(reading.dropped), padded=reading.padded,
        masked=reading.masked,
    )  # fmt: skip
    (folder / FILE).write_text(stored.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_reading(file: Path) -> Reading:
    """What `write_reading` wrote. ValueError for damaged files, and for names that are not known."""
    try:
        stored = _Stored.model_validate_json(file.read_text(encoding="utf-8"))
        if len(stored.dropped) != 2:
            raise ValueError("dropped holds a first and a last place")
        return Reading(
            stored.longest, stored.before, stored.after,
            chat=None if stored.chat is None else tuple(stored.chat.items()),
            clean=None if stored.clean is None else sources.cleaner(stored.clean),
            layers=tuple(stored.layers), dropped=(stored.dropped[0], stored.dropped[1]), padded=stored.padded,
            masked=stored.masked,
        )  # fmt: skip
    except (ValueError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ValueError(f"{file} cannot be used: {reason}") from error
