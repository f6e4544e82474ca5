"""What a run consists of, from its options alone: the same ids from plan and log make resuming a set difference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from leaf_diffusion.evaluation.prompts import Prompt
from leaf_diffusion.world.figures import noise_seed


def content_id(**content: object) -> str:
    """128 bits of sha256 over the content as canonical JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Cell:
    """One column of the results: an encoder under a protocol. `k` is 0 and `source` None without an attack.

    Protocol "floor": clean prompts from one more noise, which shows how far images drift with no attack at all.
    """

    encoder: str
    protocol: str
    source: str | None = None
    k: int = 0


@dataclass(frozen=True)
class AttackUnit:
    source: str
    k: int
    prompt: Prompt

    @property
    def id(self) -> str:
        return content_id(unit="attack", prompt_id=self.prompt.id, source=self.source, k=self.k)


@dataclass(frozen=True)
class ImageUnit:
    cell: Cell
    prompt: Prompt
    seed_index: int

    @property
    def seed(self) -> int:
        """Of the noise."""
        return noise_seed(self.prompt.id, self.seed_index)

    @property
    def id(self) -> str:
        cell = self.cell
        return content_id(
            unit="image",
            prompt_id=self.prompt.id,
            encoder=cell.encoder,
            protocol=cell.protocol,
            source=cell.source,
            k=cell.k,
            seed_index=self.seed_index,
        )


U = TypeVar("U", AttackUnit, ImageUnit)


def by_id(units: Iterable[U]) -> dict[str, U]:
    return {unit.id: unit for unit in units}


@dataclass(frozen=True)
class Plan:
    """`searched` maps each source of attacks to its k; `given` says that the attack sets come from a file."""

    prompts: Sequence[Prompt]
    cells: Sequence[Cell]
    sources: Sequence[str]
    ks: Sequence[int]
    seeds: int
    given: Sequence[tuple[str, int]] = field(default=())

    def sets(self) -> list[tuple[str, int]]:
        """(source, k) of every attack set."""
        return list(self.given) or [(source, k) for source in self.sources for k in self.ks]

    def attacks(self) -> Iterator[AttackUnit]:
        """Source by source and prompt by prompt: one search gives all k of a prompt."""
        for source in self.sources:
            for prompt in self.prompts:
                for k in (k for name, k in self.sets() if name == source):
                    yield AttackUnit(source, k, prompt)

    def images(self) -> Iterator[ImageUnit]:
        """Prompt by prompt, so that a run cut short has whole rows."""
        for prompt in self.prompts:
            for cell in self.cells:
                indices = range(self.seeds, self.seeds + 1) if cell.protocol == "floor" else range(self.seeds)
                for index in indices:
                    yield ImageUnit(cell, prompt, index)


def make_plan(
    prompts: Sequence[Prompt],
    encoders: Sequence[str],
    *,
    protocols: Sequence[str],
    transfer_sources: Sequence[str],
    ks: Sequence[int],
    seeds: int,
    given: Sequence[tuple[str, int]] = (),
) -> Plan:
    """The cells of the protocols; with attack sets from a file (`given`) every encoder faces each of these sets."""
    cells = [Cell(encoder, "clean") for encoder in encoders] + [Cell(encoders[0], "floor")]
    sources: list[str] = []
    if given:
        cells += [Cell(encoder, "transfer", source, k) for source, k in given for encoder in encoders]
        return Plan(prompts, cells, sorted({source for source, _ in given}), ks, seeds, tuple(given))
    if "adaptive" in protocols:
        cells += [Cell(encoder, "adaptive", encoder, k) for k in ks for encoder in encoders]
        sources += encoders
    if "transfer" in protocols:
        cells += [
            Cell(encoder, "transfer", source, k) for source in transfer_sources for k in ks for encoder in encoders
        ]
        sources += [source for source in transfer_sources if source not in sources]
    return Plan(prompts, cells, sources, ks, seeds)
