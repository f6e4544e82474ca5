"""The prompts of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from leaf_diffusion.text.files import first_of_each_image, read_texts
from leaf_diffusion.world import WorldPrompt, world_prompts

ClusterName = Literal["image", "label", "none"]


@dataclass(frozen=True)
class Prompt:
    """A prompt and, in the world, the scene it asks for. The id follows from the text, never from a position.

    cluster: what it shares with others that it falls together with: the noun, the image that it describes."""

    text: str
    scene: Any = None
    cluster: str | None = None

    @property
    def id(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]


def from_world(n: int, seed: int, **shares: float) -> list[Prompt]:
    """The world's prompts, `shares` of which have several things (`world_prompts`)."""
    prompts: list[WorldPrompt] = world_prompts(n, seed, **shares)
    return [Prompt(prompt.text, prompt.scene, prompt.scene.things[0].noun) for prompt in prompts]


def clusters_of(prompts: Iterable[Prompt]) -> dict[str, str]:
    """Id -> cluster, of the prompts that have one."""
    return {prompt.id: prompt.cluster for prompt in prompts if prompt.cluster is not None}


def from_file(
    path: Path,
    column: str | None = None,
    split: str | None = None,
    *,
    every: bool = False,
    cluster: ClusterName = "image",
) -> list[Prompt]:
    """The prompts of whatever `read_texts` reads; of captions of images the first of each image, or `every` one.

    cluster: what the prompts fall together by, the image that they describe or the label of their row. Blank ones are
    refused, except at the end; repeated prompts count once.
    """
    rows = read_texts(path, column=column, split=split)
    while rows and not rows[-1].text:
        rows.pop()
    if not rows:
        of_split = "" if split is None else f" of split {split!r}"
        raise ValueError(f"{path} holds no prompts{of_split}: write one prompt a line")
    if blank := [row.where for row in rows if not row.text]:
        raise ValueError(f"{blank[0]}: an empty prompt; remove the line ({len(blank)} such lines)")
    first = dict[str, str | None]()
    for row in rows if every else first_of_each_image(rows):
        first.setdefault(row.text, {"image": row.image, "label": row.label, "none": None}[cluster])
    return [Prompt(text, cluster=known) for text, known in first.items()]
