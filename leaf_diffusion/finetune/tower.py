"""The text tower that is trained: a copy of the original's."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from leaf_diffusion.encoders.base import Feature, Hidden, TextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder, text_model_of
from leaf_diffusion.encoders.sequence import SequenceTextEncoder
from leaf_diffusion.finetune.anchors import bucketed, learnt
from leaf_diffusion.finetune.config import TextFAREConfig
from leaf_diffusion.finetune.spelling import SpellingEmbedding, TokenTable

SEEN = Hidden(-1, positions="all")
"""What a Stable Diffusion's denoiser is conditioned on: the last states of all positions, padding included."""


class Features(nn.Module):  # type: ignore[misc]  # strict mode without torch's types
    """Token rows to what is learnt of them [n, d] (default: `learnt`), and other rows to token states [m, context * width].

    The one module that accelerate wraps: several processes want one forward pass an update.
    """

    def __init__(
        self, encoder: HFTextEncoder | SequenceTextEncoder, feature: Feature | None = None, states: Feature = SEEN
    ) -> None:
        super().__init__()
        self.tower, self._encoder = encoder.module, encoder
        self._feature, self._states = feature or learnt(encoder), states

    def forward(self, token_rows: list[list[int]], state_rows: list[list[int]]) -> tuple[Tensor, Tensor | None]:
        # one look-up for all buckets: backwards, each makes a gradient as large as the whole table
        table, pad = self._encoder.table, self._encoder.pad_id
        tokens = sorted({pad}.union(*token_rows, *state_rows))
        ids = torch.tensor(tokens, device=self._encoder.device)
        vectors, places = table(ids), torch.zeros(table.num_embeddings, dtype=torch.long, device=ids.device)
        places[ids] = torch.arange(len(ids), device=ids.device)

        def features(rows: list[list[int]], what: Feature) -> Tensor:
            return self._encoder.features_from_vectors(vectors, places, rows, what)

        found = bucketed(lambda rows: features(rows, self._feature), token_rows)
        return found, features(state_rows, self._states) if state_rows else None


def check_encoder(encoder: TextEncoder) -> HFTextEncoder:
    """The encoder, if it can be finetuned; ValueError if not."""
    if not isinstance(encoder, HFTextEncoder):
        raise ValueError(
            f"{encoder.name} is no CLIP of transformers, which this finetuning needs: "
            "load the model's transformers version (CLIPTextModelWithProjection)"
        )
    check_defence(encoder)
    return encoder


def check_defence(encoder: TextEncoder) -> None:
    """ValueError for an encoder with a defence before it."""
    if encoder.defence is not None:
        raise ValueError(f"{encoder.name} has the defence {encoder.defence.name!r} before it: finetune it without")


def check_tokens(encoder: HFTextEncoder, tokens: Sequence[int], config: TextFAREConfig) -> None:
    """ValueError where the rows of these tokens alone cannot be trained."""
    size = len(encoder.token_embedding())
    if not tokens or not 0 <= min(tokens) <= max(tokens) < size:
        raise ValueError(f"tokens must be token ids from 0 to {size - 1}, at least one")
    if config.lora_rank is not None:
        raise ValueError("a LoRA trains no rows of the token table: leave tokens out")


def trainable_copy(
    encoder: HFTextEncoder, *, spelling: bool = False, tokens: Sequence[int] | None = None
) -> CLIPTextModelWithProjection | CLIPTextModel:
    """The text half of the encoder's model in float32, on its own, ready to train; with a projection if that has one.

    With `spelling` its token table is a `SpellingEmbedding`, with `tokens` (the only rows of the table that are trained) a
    `TokenTable`, until `merge_table`.
    """
    settings = copy.deepcopy(encoder.config)
    if encoder.projection is None:
        tower = CLIPTextModel(settings).float()
    else:
        settings.projection_dim = encoder.projection.out_features
        tower = CLIPTextModelWithProjection(settings).float()
        tower.text_projection.load_state_dict(encoder.projection.state_dict())
    state = encoder.text_model.state_dict()
    flat = {name.removeprefix("text_model."): value for name, value in state.items()}
    inner = text_model_of(tower)
    inner.load_state_dict({name: flat[name.removeprefix("text_model.")] for name in inner.state_dict()})
    tower.requires_grad_()
    embeddings = embeddings_of(tower)
    if spelling:
        embeddings.token_embedding = SpellingEmbedding(embeddings.token_embedding, encoder.tokenizer, tokens)
    elif tokens is not None:
        embeddings.token_embedding = TokenTable(embeddings.token_embedding, tokens)
    return tower


def merge_table(tower: nn.Module) -> Tensor | None:
    """Make the token table a plain one again; the spelling's vectors [n, width] that were added into it, None without any."""
    embeddings = embeddings_of(tower)
    table = embeddings.token_embedding
    if not isinstance(table, TokenTable):
        return None
    embeddings.token_embedding = nn.Embedding(*table.weight.shape, _weight=table.merged())
    return table.spelling.detach() if isinstance(table, SpellingEmbedding) else None


def embeddings_of(tower: nn.Module) -> Any:
    """The module of a CLIP text tower that holds its token table."""
    inner: Any = text_model_of(tower)
    return getattr(inner, "text_model", inner).embeddings


def token_states(
    original: HFTextEncoder, captions: Sequence[str], attacked: list[list[int]]
) -> tuple[list[list[int]], list[int], Tensor]:
    """Token rows whose states are trained, from which position on, and the original's states [n, context, width].

    The first half of the captions as they are, the next attacked.
    """
    n = len(captions)
    clean = original.tokenize(captions)
    rows = [*clean[: n - n // 2], *attacked[n - n // 2 : n]]
    begins = [0 if row is own else max(len(row), len(own)) - 1 for row, own in zip(rows, clean, strict=True)]
    with torch.no_grad():
        return rows, begins, original.features(clean, SEEN).unflatten(1, (original.context_length, -1))
