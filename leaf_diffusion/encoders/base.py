"""The text encoder: a text tower with its own tokenizer, whatever library the tower comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from leaf_diffusion.encoders.features import Feature, SequenceFeature, hidden_of
from leaf_diffusion.encoders.features import Hidden as Hidden
from leaf_diffusion.text import Candidates
from leaf_diffusion.tokens.chunks import ChunkTokenizer
from leaf_diffusion.tokens.token_rows import TokenRows
from leaf_diffusion.tokens.tokenizer import RowTokenizer
from leaf_diffusion.weights.fingerprints import fingerprint


@runtime_checkable
class Defence(Protocol):
    """A function on prompts, applied before tokenization (a spelling corrector, say)."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, texts: Sequence[str]) -> list[str]: ...


class TextEncoder(ABC):
    """A text tower with its own tokenizer: defence, token rows, padding, pooling, fingerprint.

    A subclass says how token ids (or embeddings) become features, and what identifies the tower (`weights`, `architecture`):
    `PooledTextEncoder` for towers that are pooled at end-of-text, `SequenceTextEncoder` for those whose token states are read.
    """

    causal = True
    """Whether a state depends on the tokens up to it alone, so that rows that begin alike share states."""

    def __init__(
        self,
        module: nn.Module,
        rows: RowTokenizer,
        *,
        name: str,
        context_length: int,
        pad_id: int,
        defence: Defence | None = None,
    ) -> None:
        self.module, self.name, self.context_length, self.defence = module, name, context_length, defence
        self.rows, self.pad_id = rows, pad_id
        self._chunks = ChunkTokenizer(rows, context_length, rows.pieces)
        vocabulary = self.token_embedding().shape[0]
        if rows.max_id >= vocabulary:
            raise ValueError(
                f"{name}: the tokenizer's largest token id is {rows.max_id}, "
                f"but the tower embeds only {vocabulary} tokens; "
                "pass the tokenizer that belongs to the model as tokenizer=..."
            )

    # -- text to tokens ------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """A fast tokenizer of transformers, or a `SimpleTokenizer` of open_clip."""
        return self.rows.tokenizer

    def preprocess(self, texts: Sequence[str]) -> list[str]:
        """The texts as the tower is given them: unchanged, or after the defence."""
        return list(texts) if self.defence is None else self.defence(list(texts))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token rows, begin ... end of text, cut to `context_length` with end-of-text kept, never padded."""
        limit = self.context_length
        return [row if len(row) <= limit else [*row[: limit - 1], self.rows.eos_id] for row in self.rows(texts)]

    def tokenize_candidates(self, candidates: Candidates) -> list[tuple[int, ...]]:
        """What `tokenize(preprocess(texts))` gives for the candidates, or their own token rows; quickly for edits."""
        return self.read_candidates([candidates])[0]

    def read_candidates(self, many: Sequence[Candidates]) -> TokenRows:
        """The same for the candidates of several prompts, as arrays."""
        parts = [part for each in many for part in each.parts]
        if len(parts) > len(many):
            read = self.read_candidates(parts)
            return TokenRows(read.rows, read.which, np.array([len(each) for each in many], dtype=np.int64))
        if self.defence is None and all(each.base is not None or not len(each) for each in many):
            return self._chunks.read(many)
        return TokenRows.joined([self._read(each) for each in many])

    def _read(self, candidates: Candidates) -> TokenRows:
        if (rows := candidates.token_rows) is not None:
            return TokenRows.of([rows])
        if candidates.base is not None and self.defence is None:
            return self._chunks.read([candidates])
        return TokenRows.of([self.tokenize(self.preprocess(candidates.texts()))])

    def words(self, text: str) -> list[list[str]]:
        """How the text is read: the pieces of each word, as tokens are spelt ("umbrlla" gives "um", "br", "lla")."""
        words: list[list[str]] = [[]]
        for token in self.tokenize(self.preprocess([text]))[0][1:-1]:
            piece = self.rows.spelling(token)
            words[-1].append(piece.removesuffix("</w>"))
            if piece.endswith("</w>"):
                words.append([])
        return [word for word in words if word]

    @property
    def tokenization(self) -> tuple[object, ...]:
        """Tokenizer, context length and defence: encoders in which these are equal see the same token rows."""
        return self.rows.fingerprint, self.context_length, self.defence and self.defence.fingerprint

    def is_truncated(self, texts: Sequence[str]) -> list[bool]:
        """Whether `tokenize` would cut each text."""
        return [len(row) > self.context_length for row in self.rows(texts)]

    # -- tokens to features --------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.token_embedding().device

    @property
    def dtype(self) -> torch.dtype:
        return self.token_embedding().dtype

    def features(self, token_rows: Sequence[Sequence[int]], what: Feature = "projected") -> Float[Tensor, "n d"]:
        """Features of each row, float32, as computed by the tower's own forward pass.

        "pooled" [n, width] is the final state at end-of-text, "projected" [n, projection] the joint space with the
        images, `Hidden` [n, context_length * width] the token states. Gradients flow while autograd is on; while it is
        off, ValueError for features with NaN or infinity.
        """
        if not token_rows:  # transformers cannot run an empty batch; the width is that of any sentence
            return self.features([[self.rows.bos_id, self.rows.eos_id]], what)[:0]
        found = self._features(self._pad(token_rows, what), None, token_rows, what)
        if not torch.is_grad_enabled() and not torch.isfinite(found).all():
            row = token_rows[int(torch.isfinite(found).all(1).logical_not().nonzero()[0])]
            raise ValueError(f"{self.name}: the features of {self.rows.text(row)!r} hold NaN or infinity")
        return found

    def computed(self, length: int, what: Feature) -> int:
        """How many tokens are computed for such a feature of a row of `length` tokens."""
        hidden = hidden_of(what)
        return self.context_length if hidden is not None and hidden.positions == "all" else length

    @property
    def own_feature(self) -> Feature:
        """What is looked at unless told otherwise."""
        return "projected"

    def features_from_embeddings(
        self, embeds: Float[Tensor, "n t width"], token_rows: Sequence[Sequence[int]], what: Feature = "projected"
    ) -> Float[Tensor, "n d"]:
        """As `features`, from token embeddings (before positions); `token_rows` say where each sentence ends."""
        ids = self._pad(token_rows, what)
        lengths = torch.tensor([len(row) for row in token_rows], device=ids.device)
        if embeds.ndim != 3 or embeds.shape[0] != len(ids) or embeds.shape[1] < int(lengths.max()):
            raise ValueError(
                f"embeds {tuple(embeds.shape)} do not fit {len(ids)} token rows of up to {int(lengths.max())} tokens"
            )
        embeds = embeds.to(self.dtype)[:, : ids.shape[1]]
        embeds = nn.functional.pad(embeds, (0, 0, 0, ids.shape[1] - embeds.shape[1]))
        content = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        # whatever the caller has behind a sentence's end, the tower sees its own padding there
        embeds = torch.where(content[..., None], embeds, self.token_embedding()[self.pad_id].detach())
        return self._features(ids, self.looked_up(embeds), token_rows, what)

    def looked_up(self, embeds: Float[Tensor, "n t width"]) -> Float[Tensor, "n t width"]:
        """What the tower's table gives for rows of its weight."""
        return embeds

    def features_from_vectors(
        self,
        vectors: Float[Tensor, "m width"],
        places: Int[Tensor, " vocab"],
        token_rows: Sequence[Sequence[int]],
        what: Feature = "projected",
    ) -> Float[Tensor, "n d"]:
        """As `features` of at least one row, where the table gives `vectors[places[i]]` for token i (of the padding, too): looked
        up once for several calls, and once in the backward pass."""
        ids = self._pad(token_rows, what)
        return self._features(ids, nn.functional.embedding(places[ids], vectors), token_rows, what)

    def _pad(self, token_rows: Sequence[Sequence[int]], what: Feature) -> Int[Tensor, "n t"]:
        for i, row in enumerate(token_rows):
            if wrong := self._check_row(row):
                raise ValueError(f"token row {i} has {len(row)} tokens; {self.name} takes {wrong}")
        length = self.computed(max(map(len, token_rows)), what)
        padded = [[*row, *[self.pad_id] * (length - len(row))] for row in token_rows]
        return torch.tensor(padded, dtype=torch.long, device=self.device)

    @abstractmethod
    def _check_row(self, row: Sequence[int]) -> str | None:
        """What is wrong with a token row, if anything."""

    @abstractmethod
    def _features(
        self, ids: Int[Tensor, "n t"], embeds: Tensor | None, token_rows: Sequence[Sequence[int]], what: Feature
    ) -> Float[Tensor, "n d"]:
        """The feature of padded rows; `embeds`, where given, in the place of the tokens' own."""

    @property
    def has_projection(self) -> bool:
        """Whether there are features in a joint space with images."""
        return False

    def require_projection(self) -> None:
        """Raises ValueError where the tower has no projection into the joint space."""
        if not self.has_projection:
            raise ValueError(
                f'{self.name} has no text projection, so "projected" features do not exist: ask for "pooled" features '
                '(Drift("l2", feature="pooled")), or load the CLIP model that the tower '
                "came from (CLIPTextModelWithProjection)"
            )

    @abstractmethod
    def token_embedding(self) -> Float[Tensor, "vocab width"]: ...

    # -- identity ------------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """sha256 hex over text weights as stored, architecture, tokenizer and defence; follows in-place training."""
        # never remembered: a fused optimiser changes weights without a trace
        tower = f"{self.architecture()}\n{self.context_length}\n{self.rows.fingerprint}\n"
        return fingerprint(self.weights(), tower, self.defence.fingerprint if self.defence else "")

    @abstractmethod
    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """Names and tensors of the text half alone."""

    @abstractmethod
    def architecture(self) -> str:
        """What changes the features and is not in the weights (activation, heads, ...)."""


class PooledTextEncoder(TextEncoder):
    """A tower that is pooled at end-of-text, as CLIP's are. A subclass says how token ids (or embeddings) become states
    (`_states`), and whether and how the pooled one is projected (`has_projection`, `_project`)."""

    def _check_row(self, row: Sequence[int]) -> str | None:
        eos, limit = self.rows.eos_id, self.context_length
        return f"at most {limit}, end-of-text ({eos}) among them" if len(row) > limit or eos not in row else None

    def _features(
        self, ids: Int[Tensor, "n t"], embeds: Tensor | None, token_rows: Sequence[Sequence[int]], what: Feature
    ) -> Float[Tensor, "n d"]:
        hidden = hidden_of(what)
        if what not in ("pooled", "projected") and hidden is None:
            raise ValueError(
                f'unknown feature {what!r}; choose "pooled", "projected", Hidden(layer, positions), Readout() or MeanState()'
            )
        if what == "projected":
            self.require_projection()
        states = self._states(ids, embeds, hidden.layer if hidden else -1)
        if hidden is not None:
            lengths = torch.tensor([len(row) for row in token_rows], device=ids.device)
            content = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
            if hidden.positions == "all":
                content = torch.ones_like(content)
            if isinstance(what, SequenceFeature):
                return what(states, content)
            states = torch.where(content[..., None], states, torch.zeros_like(states))
            states = nn.functional.pad(states, (0, 0, 0, self.context_length - states.shape[1]))
            return states.flatten(1).float()
        # the first end-of-text, whatever stands behind it: what transformers and open_clip pool as well
        pooled = states[torch.arange(len(ids), device=ids.device), (ids == self.rows.eos_id).int().argmax(1)]
        return (self._project(pooled) if what == "projected" else pooled).float()

    @abstractmethod
    def _states(self, ids: Int[Tensor, "n t"], embeds: Tensor | None, layer: int) -> Float[Tensor, "n t width"]: ...

    @abstractmethod
    def _project(self, pooled: Float[Tensor, "n width"]) -> Float[Tensor, "n projection"]: ...


Tower = TextEncoder  # the old name
