"""The tower that is trained: a copy of the original's, and how it is optimised."""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from leaf_diffusion.encoders.base import Feature, Hidden, TextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder, text_model_of, token_table
from leaf_diffusion.finetune.config import TextFAREConfig
from leaf_diffusion.finetune.spelling import SpellingEmbedding, TokenTable
from leaf_diffusion.finetune.textfare import bucketed

SEEN = Hidden(-1, positions="all")
"""What a Stable Diffusion's denoiser is conditioned on: the last states of all positions, padding included."""


class Features(nn.Module):  # type: ignore[misc]  # strict mode without torch's types
    """Token rows to projected features [n, d] and other rows to token states [m, context * width].

    The one module that accelerate wraps: several processes want one forward pass an update.
    """

    def __init__(self, encoder: HFTextEncoder) -> None:
        super().__init__()
        self.tower, self._encoder = encoder.module, encoder

    def forward(self, token_rows: list[list[int]], state_rows: list[list[int]]) -> tuple[Tensor, Tensor | None]:
        # one look-up for all buckets: backwards, each makes a gradient as large as the whole table
        table, pad = token_table(self._encoder.text_model), self._encoder.pad_id
        tokens = sorted({pad}.union(*token_rows, *state_rows))
        ids = torch.tensor(tokens, device=self._encoder.device)
        vectors, places = table(ids), torch.zeros(table.num_embeddings, dtype=torch.long, device=ids.device)
        places[ids] = torch.arange(len(ids), device=ids.device)

        def features(rows: list[list[int]], what: Feature = "projected") -> Tensor:
            return self._encoder.features_from_vectors(vectors, places, rows, what)

        return bucketed(features, token_rows), features(state_rows, SEEN) if state_rows else None


def check_encoder(encoder: TextEncoder) -> HFTextEncoder:
    """The encoder, if it can be finetuned; ValueError if not."""
    if not isinstance(encoder, HFTextEncoder):
        raise ValueError(
            f"{encoder.name} is no transformers model, which the finetuning needs: "
            "load the model's transformers version (CLIPTextModelWithProjection)"
        )
    encoder.require_projection()
    if encoder.defence is not None:
        raise ValueError(f"{encoder.name} has the defence {encoder.defence.name!r} before it: finetune it without")
    return encoder


def check_tokens(encoder: HFTextEncoder, tokens: Sequence[int], config: TextFAREConfig) -> None:
    """ValueError where the rows of these tokens alone cannot be trained."""
    size = len(encoder.token_embedding())
    if not tokens or not 0 <= min(tokens) <= max(tokens) < size:
        raise ValueError(f"tokens must be token ids from 0 to {size - 1}, at least one")
    if config.lora_rank is not None:
        raise ValueError("a LoRA trains no rows of the token table: leave tokens out")


def trainable_copy(
    encoder: HFTextEncoder, *, spelling: bool = False, tokens: Sequence[int] | None = None
) -> CLIPTextModelWithProjection:
    """The text half of the encoder's model in float32, on its own, ready to train.

    With `spelling` its token table is a `SpellingEmbedding`, with `tokens` (the only rows of the table that are trained) a
    `TokenTable`, until `merge_table`.
    """
    assert encoder.projection is not None
    settings = copy.deepcopy(encoder.config)
    settings.projection_dim = encoder.projection.out_features
    tower = CLIPTextModelWithProjection(settings).float()
    state = text_model_of(encoder.module).state_dict()
    flat = {name.removeprefix("text_model."): value for name, value in state.items()}
    inner = cast(nn.Module, tower.text_model)
    inner.load_state_dict({name: flat[name.removeprefix("text_model.")] for name in inner.state_dict()})
    tower.text_projection.load_state_dict(encoder.projection.state_dict())
    tower.requires_grad_()
    embeddings = _embeddings(tower)
    if spelling:
        embeddings.token_embedding = SpellingEmbedding(embeddings.token_embedding, encoder.tokenizer, tokens)
    elif tokens is not None:
        embeddings.token_embedding = TokenTable(embeddings.token_embedding, tokens)
    return tower


def merge_table(tower: CLIPTextModelWithProjection) -> Tensor | None:
    """Make the token table a plain one again; the spelling's vectors [n, width] that were added into it, None without any."""
    embeddings = _embeddings(tower)
    table = embeddings.token_embedding
    if not isinstance(table, TokenTable):
        return None
    embeddings.token_embedding = nn.Embedding(*table.weight.shape, _weight=table.merged())
    return table.spelling.detach() if isinstance(table, SpellingEmbedding) else None


def _embeddings(tower: CLIPTextModelWithProjection) -> Any:
    inner = cast(Any, tower.text_model)
    return getattr(inner, "text_model", inner).embeddings


def token_states(
    original: HFTextEncoder, captions: Sequence[str], attacked: list[list[int]], n: int
) -> tuple[list[list[int]], list[int], Tensor]:
    """Token rows whose states are trained, from which position on, and the original's states [n, context, width].

    The first half of `n` captions as they are, the next attacked.
    """
    n = min(n, len(captions))
    clean = original.tokenize(captions[:n])
    rows = [*clean[: n - n // 2], *attacked[n - n // 2 : n]]
    begins = [0 if row is own else max(len(row), len(own)) - 1 for row, own in zip(rows, clean, strict=True)]
    with torch.no_grad():
        return rows, begins, original.features(clean, SEEN).unflatten(1, (original.context_length, -1))


def new_optimiser(tower: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW without decay on gains, biases (the paper's recipe) and the token table, spelling included.

    Decay on the table would move the embedding of every token that no caption holds, towards nothing.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in tower.named_parameters():
        if not parameter.requires_grad:
            continue
        (kept if parameter.ndim < 2 or "token_embedding" in name else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=True)
