"""Zero-shot text classification tasks: texts with labels, and what the classes look like to an encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.text.files import LABELS, read_texts
from leaf_diffusion.world.captions import zero_shot_prompts
from leaf_diffusion.world.figures import zero_shot_anchors
from leaf_diffusion.world.scenes import MINIMAL_PAIRS

TEMPLATES = ("a text about {}", "an article about {}", "this is about {}")


@dataclass(frozen=True)
class Task:
    """`anchors(encoder)` are the class features [classes, d], normalised; `pairs` says that minimal pairs can be tried; texts
    of one name in `clusters` fall together."""

    texts: Sequence[str]
    labels: Sequence[int]
    classes: Sequence[str]
    anchors: Callable[[TextEncoder], Tensor]
    pairs: bool = False
    clusters: Sequence[str] = ()

    def spread(self, limit: int | None) -> list[int]:
        """Numbers of `limit` texts, spread over all of them, and so over the classes where these are in order."""
        n = len(self.texts) if limit is None else min(limit, len(self.texts))
        return [i * len(self.texts) // n for i in range(n)]

    def named(self, numbers: Sequence[int]) -> list[list[str | int]]:
        """Texts and labels, for the identity of a run."""
        return [[self.texts[i], self.labels[i]] for i in numbers]


def world_task(images: int) -> Task:
    """A caption a class, "a photo of a {colour} {noun}"; class features: the mean image feature of that many
    images a class, by the world CLIP's image tower, which no finetuning of a text tower touches."""
    prompts = zero_shot_prompts()
    anchors = zero_shot_anchors(per_class=images)
    names = [f"{colour} {noun}" for _, noun, colour in prompts]
    return Task([text for text, _, _ in prompts], range(len(prompts)), names, lambda _: anchors, pairs=True,
                clusters=[noun for _, noun, _ in prompts])  # fmt: skip


def file_task(
    source: str, *, column: str | None, split: str | None, classes: Sequence[str], templates: Sequence[str]
) -> Task:
    """Texts and labels of a file or a Hugging Face dataset; class features are each encoder's own of the templates.

    Labels are texts, or numbers that count `classes` from 0. Raises ValueError that says which row has no label.
    """
    rows = read_texts(source, column=column, split=split)
    if not rows:
        raise ValueError(f"{source} holds no texts")
    for row in rows:
        if row.label is None:
            raise ValueError(f"{row.where}: no label; a task needs a column {' or '.join(map(repr, LABELS))}")
        if not row.text:
            raise ValueError(f"{row.where}: an empty text; remove the row")
    found = sorted({str(row.label) for row in rows})
    if not classes and all(label.isdigit() for label in found):
        raise ValueError(f"{source}: its labels are numbers ({', '.join(found[:5])}): name the classes by --classes")
    names = list(classes) or found
    if len(names) < 2:
        raise ValueError(f"{source}: a classification needs two classes at least, got {names}")
    numbers = {name: i for i, name in enumerate(names)} | {str(i): i for i in range(len(names)) if str(i) not in names}
    for row in rows:
        if row.label not in numbers:
            raise ValueError(f"{row.where}: label {row.label!r} is none of the classes {', '.join(names[:12])}")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"--templates {template!r} has no {{}} where the class name goes")

    @torch.inference_mode()
    def anchors(encoder: TextEncoder) -> Tensor:
        written = [template.replace("{}", name) for name in names for template in templates]
        features = normalize(encoder.features(encoder.tokenize(encoder.preprocess(written))), dim=-1)
        return normalize(features.unflatten(0, (len(names), len(templates))).mean(1), dim=-1)

    order = sorted(range(len(rows)), key=lambda i: numbers[str(rows[i].label)])
    return Task([rows[i].text for i in order], [numbers[str(rows[i].label)] for i in order], names, anchors)


def load_task(
    name: str,
    *,
    images: int,
    column: str | None,
    split: str | None,
    classes: Sequence[str],
    templates: Sequence[str],
) -> Task:
    """ "world", a file or "dataset:NAME"."""
    if name == "world":
        return world_task(images)
    try:
        return file_task(name, column=column, split=split, classes=classes, templates=templates)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{error}; expected "world", a file of labelled texts, or dataset:NAME') from error


def pair_clusters() -> list[str]:
    """Which minimal pair each figure of `sensitivity` is of."""
    colours = {colour for _, _, colour in zero_shot_prompts()}
    return [f"{one}/{other}" for one, other in MINIMAL_PAIRS for _ in range(2 * len(colours))]


def sensitivity(encoder: TextEncoder, anchors: Tensor) -> list[float]:
    """1 or 0 for each minimal pair of the world, colour and direction: is the caption nearer to its own class than to
    the other's?

    The share is the sensitivity; an encoder that hears no difference between cat and hat comes out near 0.5.
    """
    classes = zero_shot_prompts()
    index = {(noun, colour): i for i, (_, noun, colour) in enumerate(classes)}
    rows = encoder.tokenize(encoder.preprocess([text for text, _, _ in classes]))
    with torch.inference_mode():
        similarity = normalize(encoder.features(rows), dim=-1) @ anchors.to(encoder.device).T
    told = []
    for a, b in (pair for one, other in MINIMAL_PAIRS for pair in ((one, other), (other, one))):
        for colour in sorted({colour for _, _, colour in classes}):
            own, swapped = index[a, colour], index[b, colour]
            told.append(float(similarity[own, own] > similarity[own, swapped]))
    return told
