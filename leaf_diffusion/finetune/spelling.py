"""Token embeddings that know how their token is spelt, so that what one misspelling teaches serves the others.

A typo shatters a word into pieces that the caption's encoder has hardly met, thousands of them, and each has a row of
the token table to itself. Here every row gets a trainable part that it shares: the sum of vectors of the piece's
characters, pairs, triples, and of those at its beginning and end. The vectors start at zero, so training starts at the
original; after training the sum is added into the table, and the tower is a plain CLIP again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding, embedding_bag

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_END, _OTHER = len(_LETTERS), len(_LETTERS) + 1
KINDS = _OTHER + 1
"""Kinds of character: the letters, the digits, the end of a word, anything else."""
TRIPLES = 2048
"""Vectors that the triples of characters share (by a fixed hash)."""
LONGEST, EDGE = 12, 4
"""Characters of a piece that are read, and those of them that count as its beginning or end."""
N_VECTORS = KINDS + KINDS**2 + TRIPLES + 2 * EDGE * KINDS


def spelling_features(vocabulary: dict[str, int], size: int) -> NDArray[np.int64]:
    """Which vectors spell each token, [size, most]; `N_VECTORS` fills up.

    `vocabulary` is that of CLIP's byte-pair encoding: "</w>" ends the last piece of a word. Special tokens have none.
    """
    letters = np.full((size, LONGEST + 1), -1, dtype=np.int64)
    lengths = np.zeros(size, dtype=np.int64)
    kinds = {letter: kind for kind, letter in enumerate(_LETTERS)}
    for token, i in vocabulary.items():
        if token.startswith("<|"):
            continue
        ends = token.endswith("</w>") and len(token) > len("</w>")
        piece = (token.removesuffix("</w>") if ends else token)[:LONGEST]
        row = [kinds.get(letter, _OTHER) for letter in piece] + [_END] * ends
        letters[i, : len(row)], lengths[i] = row, len(row)
    columns = np.arange(letters.shape[1])
    pairs = np.where(columns[1:] < lengths[:, None], letters[:, :-1] * KINDS + letters[:, 1:], -1)
    triples = pairs[:, :-1] * KINDS + letters[:, 2:]
    triples = np.where(columns[2:] < lengths[:, None], triples * 40503 % 65_521 % TRIPLES, -1)
    backwards = np.take_along_axis(letters, np.maximum(lengths[:, None] - 1 - columns[:EDGE], 0), axis=1)
    backwards = np.where(columns[:EDGE] < lengths[:, None], backwards, -1)
    found, first = [], 0
    for part, n in (
        (letters, KINDS),
        (pairs, KINDS**2),
        (triples, TRIPLES),
        (np.where(letters[:, :EDGE] < 0, -1, columns[:EDGE] * KINDS + letters[:, :EDGE]), EDGE * KINDS),
        (np.where(backwards < 0, -1, columns[:EDGE] * KINDS + backwards), EDGE * KINDS),
    ):
        found.append(np.where(part < 0, N_VECTORS, part + first))
        first += n
    return np.sort(np.concatenate(found, axis=1), axis=1)


class TokenTable(nn.Embedding):  # type: ignore[misc]  # strict mode without torch's types
    """A token table of which only some rows are trained: the others have no gradient and no moments, which for a whole table
    cost more than the rest of a small tower. `tokens`: whose rows; None: all.
    """

    places: Tensor

    def __init__(self, table: nn.Embedding, tokens: Sequence[int] | None = None) -> None:
        size, width = table.weight.shape
        super().__init__(size, width, _weight=table.weight.detach().clone())
        self.own: nn.Parameter | None = None
        if tokens is not None:
            self.weight.requires_grad_(False)
            self.own = nn.Parameter(torch.zeros(len(tokens) + 1, width))  # the last one, for all others, stays zero
            places = torch.full((size,), len(tokens))
            places[torch.tensor(list(tokens), dtype=torch.long)] = torch.arange(len(tokens))
            self.register_buffer("places", places, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        rows = super().forward(ids)
        if self.own is None:
            return rows
        return rows + embedding(self.places[ids], self.own, padding_idx=len(self.own) - 1)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The table [tokens, width] as a plain one."""
        return self.weight.clone() if self.own is None else self.weight + self.own[self.places]


class SpellingEmbedding(TokenTable):
    """A token table whose rows are its own plus the sum of their spelling's vectors (zero at first)."""

    letters: Tensor

    def __init__(self, table: nn.Embedding, tokenizer: Any, tokens: Sequence[int] | None = None) -> None:
        vocabulary = tokenizer.get_vocab()
        if not any(token.endswith("</w>") for token in vocabulary):
            raise ValueError("spelling=True reads the pieces of CLIP's byte-pair encoding; this tokenizer has others")
        super().__init__(table, tokens)
        self.spelling = nn.Parameter(torch.zeros(N_VECTORS + 1, table.embedding_dim))
        features = spelling_features(vocabulary, table.num_embeddings)
        self.register_buffer("letters", torch.from_numpy(features), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        tokens, places = ids.unique(return_inverse=True)
        return (super().forward(tokens) + spelt(self.letters[tokens], self.spelling))[places]

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The table [tokens, width] with the spelling added in."""
        return super().merged() + spelt(self.letters, self.spelling)


def spelt(letters: Tensor, vectors: Tensor) -> Tensor:
    """The sum of each token's vectors [tokens, width]; the last vector stands for none."""
    return embedding_bag(letters, vectors, mode="sum", padding_idx=N_VECTORS)
