"""A learnt token (textual inversion) of one text encoder, translated for another.

A token that was learnt for one encoder means something else to an encoder whose token table has been finetuned. But what
the denoiser should be told is known: the token states of the encoder that it was learnt for. So the other encoder's
vectors are found by descent towards those, in seconds and without images or a denoiser.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from leaf_diffusion.encoders.base import Hidden, TextEncoder
from leaf_diffusion.runs import atomic_write
from leaf_diffusion.weights.files import load_weights, read_header

TEMPLATES = (
    "{}", "a {}", "the {}", "a photo of {}", "a photo of a {}", "a photo of the {}", "a photo of my {}", "a picture of a {}",
    "a picture of one {}", "a drawing of a {}", "a painting of the {}", "a close-up of a {}", "a small {}", "a large {}",
    "a photo of a nice {}", "a photo of a {} on a table", "a photo of the {} in the snow", "a {} in front of a house",
    "a picture of a {} and a dog", "a cat beside a {}", "a painting in the style of {}", "a drawing by {}",
    "a portrait of {} at night", "{}, a photo of a street",
)  # fmt: skip
"""Prompts around the token, a thing or a style."""
BATCH, RATE, STEPS = 8, 0.1, 200
FILLER = 0
"""Stands in token rows where a learnt vector does; its own embedding is never read."""


@dataclass(frozen=True)
class TranslatedToken:
    """What `translate_token` found."""

    embedding: Float[Tensor, "vectors width"]
    """float32, on the CPU; of one vector, too."""
    before: float
    """Squared distance of the target's token states, with the vectors as they were given, to the source's, relative to
    these; mean over the templates."""
    after: float
    """The same with the vectors that were found."""


def translate_token(
    embedding: Float[Tensor, "*vectors width"],
    source: TextEncoder,
    target: TextEncoder,
    *,
    templates: Sequence[str] = TEMPLATES,
    layer: int = -1,
    steps: int = STEPS,
    seed: int = 0,
    advance: Callable[[], None] | None = None,
) -> TranslatedToken:
    """Vectors that mean to `target` what `embedding` means to `source`: least squares between the token states of both (padding
    included) in prompts around the token, by Adam.

    `embedding`: the vectors, or one alone [width].
    `templates`: texts with one "{}" each. `layer`: the states that the denoiser sees, as `Hidden` counts them: -1 for
    Stable Diffusion 1 and 2, -2 for SDXL's and SD3's towers. `advance` is called after each step. The vectors stay as they
    are where none better are found. Raises ValueError for vectors, encoders or templates that do not fit.
    """
    given = _checked(embedding, source, target, steps)
    device, tables = target.device, [tower.token_embedding().detach() for tower in (source, target)]
    rows = [_row(template, len(given), source) for template in templates]
    if not rows:
        raise ValueError("translate_token needs one template at least")
    feature = Hidden(layer, "all")

    def states(tower: TextEncoder, table: Tensor, vectors: Tensor, some: Sequence[int]) -> Tensor:
        chosen = [rows[i] for i in some]
        return tower.features_from_embeddings(
            _embedded(chosen, table, vectors.to(table)), [ids for ids, _ in chosen], feature
        )

    everything = [range(i, min(i + BATCH, len(rows))) for i in range(0, len(rows), BATCH)]
    with torch.no_grad():
        wanted = torch.cat([states(source, tables[0], given, some) for some in everything]).to(device)

    def distance(vectors: Tensor, some: Sequence[int]) -> Tensor:
        towards = wanted[list(some)]
        return ((states(target, tables[1], vectors, some) - towards).pow(2).sum(1) / towards.pow(2).sum(1)).mean()

    def whole(vectors: Tensor) -> float:
        with torch.no_grad():
            return float(sum(distance(vectors, some) * len(some) for some in everything) / len(rows))

    before = whole(given.to(device))
    # finetuning can widen the table several times over
    start = given.to(device) * (tables[1].float().std() / tables[0].float().std().to(device))
    found = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([found], lr=RATE * float(start.std().clamp(min=1e-8)))
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        some = torch.randperm(len(rows), generator=draw)[:BATCH].tolist()
        (found.grad,) = torch.autograd.grad(distance(found, some), [found])  # the towers' weights get none
        optimiser.step()
        falling.step()
        if advance is not None:
            advance()
    after = whole(found.detach())
    if not after < before:
        return TranslatedToken(given, before, before)
    return TranslatedToken(found.detach().float().cpu(), before, after)


def _checked(embedding: Tensor, source: TextEncoder, target: TextEncoder, steps: int) -> Tensor:
    given = embedding.detach().float().cpu()
    given = given[None] if given.ndim == 1 else given
    widths = [tower.token_embedding().shape[1] for tower in (source, target)]
    if given.ndim != 2 or not len(given) or set(widths) != {given.shape[1]}:
        raise ValueError(
            f"a learnt token of shape {tuple(embedding.shape)} does not fit: {source.name} has vectors of {widths[0]} numbers, "
            f"{target.name} of {widths[1]}"
        )
    if not given.isfinite().all():
        raise ValueError("the learnt token holds numbers that are not finite")
    if (source.rows.fingerprint, source.context_length) != (target.rows.fingerprint, target.context_length):
        raise ValueError(f"{source.name} and {target.name} read texts differently: tokenizer or context length")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return given


def _row(template: str, vectors: int, tower: TextEncoder) -> tuple[list[int], int]:
    """The token ids of a template with a filler for each vector, and where the first of these stands."""
    left, there, right = template.partition("{}")
    if not there or "{}" in right:
        raise ValueError(f"the template {template!r} needs one {{}}, where the token goes")
    before, behind = tower.rows([left])[0][:-1], tower.rows([right])[0][1:]
    row = [*before, *[FILLER] * vectors, *behind]
    if len(row) > tower.context_length:
        raise ValueError(
            f"the template {template!r} with {vectors} vectors has {len(row)} of {tower.context_length} tokens"
        )
    return row, len(before)


def _embedded(rows: Sequence[tuple[list[int], int]], table: Tensor, vectors: Tensor) -> Tensor:
    """Token embeddings [rows, longest, width] with the vectors in place; what stands behind a row's end is never read."""
    longest = max(len(ids) for ids, _ in rows)
    found = []
    for ids, at in rows:
        known = table[torch.tensor([*ids, *[FILLER] * (longest - len(ids))], device=table.device)]
        found.append(torch.cat([known[:at], vectors, known[at + len(vectors) :]]))
    return torch.stack(found)


def translate_file(
    file: Path, output: Path, source: TextEncoder, target: TextEncoder, *, key: str | None = None, **how: Any
) -> TranslatedToken:
    """Translate the learnt token of a .safetensors file (its tensor `key`, where several would fit) into a file laid out alike.

    `how`: as of `translate_token`. Raises ValueError, OSError.
    """
    tensors, metadata = read_tensors(file)
    key = _chosen(tensors, key, source.token_embedding().shape[1], file)
    found = translate_token(tensors[key], source, target, **how)
    tensors[key] = found.embedding.reshape(tensors[key].shape).to(tensors[key].dtype)
    atomic_write(output, save(tensors, metadata))
    return found


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """The tensors of a .safetensors file and its metadata. Raises ValueError, OSError."""
    return load_weights(file), read_header(file).metadata or None


def _chosen(tensors: dict[str, Tensor], key: str | None, width: int, file: Path) -> str:
    """The tensor that is the token's."""
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()) or "nothing"
    if key is not None:
        if key not in tensors:
            raise ValueError(f"{file} holds {shapes}, and no {key!r}")
        return key
    fitting = [name for name, each in tensors.items() if each.ndim in (1, 2) and each.shape[-1] == width]
    if len(fitting) != 1:
        what = "several vectors of that width: name one with --key" if fitting else "no vectors of that width"
        raise ValueError(f"the source embeds tokens {width} wide; {file} holds {shapes}, {what}")
    return fitting[0]
