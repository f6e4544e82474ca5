"""Where the right image stands when images are ranked by their similarity to a caption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def ranks(similarities: Float[Tensor, "queries items"], truth: Sequence[int]) -> Int[Tensor, " queries"]:
    """Rank of each query's true item, from 1: one more than the number of others at least as similar.

    A tie counts against the query, so an encoder that hears nothing finds nothing. Recall@k of a query is `rank <= k`.
    Raises ValueError where `truth` does not name one item a query, or a similarity is NaN.
    """
    if similarities.ndim != 2 or len(truth) != len(similarities):
        raise ValueError(f"{len(truth)} true items for similarities {tuple(similarities.shape)}: give one a query")
    for i, item in enumerate(truth):
        if not 0 <= item < similarities.shape[1]:
            raise ValueError(f"query {i}: item {item} is none of the {similarities.shape[1]}")
    if similarities.isnan().any():
        raise ValueError("a similarity is NaN: the encoder overflowed, use a higher precision")
    own = similarities.gather(1, torch.tensor(list(truth), device=similarities.device, dtype=torch.long)[:, None])
    return (similarities >= own).sum(1)  # the true item is as similar as itself: counted from 1
