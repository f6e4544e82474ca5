"""Embedding inversion: a sentence whose embedding is a given one, by projected gradient over token embeddings (PEZ)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from leaf_diffusion.attacks.base import generators
from leaf_diffusion.encoders.base import Feature, TextEncoder

PROJECTED_AT_ONCE = 1 << 26
"""Similarities of free tokens to the vocabulary that are held at once: 256 MB."""


@dataclass(frozen=True)
class Inversion:
    """The best token row met (begin ... end of text), its cosine to the target, and the step that met it (from 0)."""

    token_ids: list[int]
    cosine: float
    step: int


def invert(
    encoder: TextEncoder,
    targets: Float[Tensor, "n d"],
    lengths: Sequence[int],
    names: Sequence[str],
    *,
    steps: int = 3000,
    lr: float = 0.1,
    weight_decay: float = 0.1,
    vocabulary: Sequence[int] | None = None,
    feature: Feature = "projected",
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> list[Inversion]:
    """Search for rows of `lengths[i]` free tokens whose `feature` has the highest cosine to `targets[i]`.

    Wen et al. 2023 (PEZ): continuous embeddings are kept; each step projects them to the nearest token embeddings (by
    cosine, as in their code), takes the gradient of the loss there, and applies it to the continuous ones with AdamW.
    The start is random tokens, drawn from (seed, names[i]) alone; `vocabulary` (default: all) are the tokens that may be
    chosen, never begin or end of text. The rows share one batch; another batch changes no more than the last digits of
    its matrix products.

    Raises ValueError for counts that do not fit, more free tokens than the context has, or an empty vocabulary.
    """
    if not len(targets) == len(lengths) == len(names):
        raise ValueError(f"{len(targets)} targets, {len(lengths)} lengths and {len(names)} names: give one each a row")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    longest = encoder.context_length - 2
    if bad := [length for length in lengths if not 1 <= length <= longest]:
        raise ValueError(f"a row of {bad[0]} free tokens: {encoder.name} takes 1 to {longest}")
    table = encoder.token_embedding().detach()
    special = {encoder.rows.bos_id, encoder.rows.eos_id, encoder.pad_id}
    allowed = sorted(set(range(encoder.rows.max_id + 1) if vocabulary is None else vocabulary) - special)
    if not allowed or not 0 <= allowed[0] <= allowed[-1] < len(table):
        raise ValueError(f"the vocabulary has to name tokens from 0 to {len(table) - 1}, end of text not among them")
    ids = torch.tensor(allowed, device=table.device)
    units = normalize(table[ids].float(), dim=-1)
    starts = [
        rng.integers(len(allowed), size=length) for rng, length in zip(generators(names, seed), lengths, strict=True)
    ]
    # the free tokens of all rows, one after the other: (row, position) says where each belongs
    row = torch.tensor([i for i, length in enumerate(lengths) for _ in range(length)], device=table.device)
    position = torch.tensor([1 + j for length in lengths for j in range(length)], device=table.device)
    first = torch.cat([torch.from_numpy(start) for start in starts]).to(table.device)
    free = table[ids[first]].float().clone().requires_grad_()
    optimiser = torch.optim.AdamW([free], lr=lr, weight_decay=weight_decay)
    shape = torch.full((len(lengths), max(lengths) + 2), encoder.rows.eos_id, device=table.device)
    shape[:, 0] = encoder.rows.bos_id
    wanted = targets.detach().to(table.device, torch.float32)
    best = torch.full((len(lengths),), -torch.inf, device=table.device)
    found, when = shape.clone(), torch.zeros(len(lengths), dtype=torch.long, device=table.device)
    for step in range(steps):
        tokens = shape.clone()
        tokens[row, position] = ids[_nearest(free.detach(), units)]
        rows = [tokens[i, : length + 2].tolist() for i, length in enumerate(lengths)]
        embeds = table[tokens].float().requires_grad_()
        cosine = cosine_similarity(encoder.features_from_embeddings(embeds, rows, feature), wanted, dim=-1)
        (slope,) = torch.autograd.grad(-cosine.sum(), embeds)
        better = cosine.detach() > best
        best, found = torch.where(better, cosine.detach(), best), torch.where(better[:, None], tokens, found)
        when[better] = step
        free.grad = slope[row, position]
        optimiser.step()
        if on_step is not None:
            on_step(step)
    rows = [found[i, : length + 2].tolist() for i, length in enumerate(lengths)]
    return [Inversion(*each) for each in zip(rows, best.tolist(), when.tolist(), strict=True)]


def _nearest(free: Float[Tensor, "n width"], units: Float[Tensor, "vocab width"]) -> Tensor:
    """Index of the unit vector with the highest cosine to each row."""
    size = max(1, PROJECTED_AT_ONCE // len(units))
    return torch.cat([(part @ units.T).argmax(1) for part in free.split(size)])
