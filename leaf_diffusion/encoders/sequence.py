"""Text encoders whose token states a denoiser reads, and nothing pooled: T5, BERT and language models."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from leaf_diffusion.encoders.base import Defence, TextEncoder
from leaf_diffusion.encoders.features import Feature, Readout, SequenceFeature
from leaf_diffusion.encoders.settings import settings
from leaf_diffusion.text import Candidates
from leaf_diffusion.tokens.reading import PromptTokenizer, Reading
from leaf_diffusion.tokens.token_rows import TokenRows


class SequenceTextEncoder(TextEncoder):
    """A transformers model that writes token states, with its tokenizer and how a pipeline reads prompts with it.

    `module` is used as it is: neither copied, cast, moved nor switched to eval. Token rows are those of the whole template,
    cut and not padded. Features are sequence features (`Readout()` unless told otherwise) of the states that the denoiser is
    given. Raises ValueError for other models, and for tokenizers that misfit.
    """

    rows: PromptTokenizer

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Any,
        *,
        reading: Reading,
        name: str | None = None,
        defence: Defence | None = None,
    ) -> None:
        self.tower, self.reading = self.tower_of(module), reading
        self.config: Any = self.tower.config
        rows = PromptTokenizer(tokenizer, reading)
        name = name or type(module).__name__
        blocks = self.config.num_hidden_layers
        if wrong := [layer for layer in reading.layers if not -blocks - 1 <= layer <= blocks]:
            raise ValueError(f"{name} has {blocks} blocks, so there is no hidden state {wrong[0]}")
        assert rows.pad_id is not None
        super().__init__(module, rows, name=name, context_length=reading.longest, pad_id=rows.pad_id, defence=defence)

    @classmethod
    @abstractmethod
    def tower_of(cls, module: nn.Module) -> nn.Module:
        """The transformer without heads inside of a module; ValueError for models of another kind."""

    @classmethod
    @abstractmethod
    def stored_as(cls, config: Any) -> tuple[type[PreTrainedModel], tuple[str, ...]]:
        """The class that a model of such a configuration is loaded in, and prefixes of stored tensors that it has no use for."""

    @property
    def table(self) -> nn.Embedding:
        """The module that looks tokens up."""
        return self.tower.get_input_embeddings()

    # -- text to tokens ------------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token rows with the template, cut as the pipeline cuts, never padded."""
        return self.rows.cut(texts)

    def read_candidates(self, many: Sequence[Candidates]) -> TokenRows:
        """The token rows of several prompts' candidates, each text tokenized as a whole."""
        texts = [text for each in many if each.token_rows is None for text in each.texts()]
        read = self.preprocess(texts)
        distinct = list(dict.fromkeys(read))
        place = dict(zip(distinct, map(tuple, self.tokenize(distinct)), strict=True))
        rows = iter([place[text] for text in read])
        return TokenRows.of(
            [[next(rows) for _ in range(len(each))] if each.token_rows is None else each.token_rows for each in many]
        )

    def words(self, text: str) -> list[list[str]]:
        """How the prompt is read, with its template: the pieces of each word, as tokens are spelt, marks of spaces left out."""
        words: list[list[str]] = [[]]
        for token in self.tokenize(self.preprocess([text]))[0]:
            piece = self.rows.spelling(token)
            if piece[:1] in SPACES:
                words.append([])
            words[-1].append(piece.lstrip(SPACES))
        return [kept for word in words if (kept := [piece for piece in word if piece])]

    # -- tokens to features --------------------------------------------------------------------------------------

    @property
    def own_feature(self) -> Feature:
        return Readout()

    def computed(self, length: int, what: Feature) -> int:
        return self.reading.longest if self.reading.padded else length

    def features(self, token_rows: Sequence[Sequence[int]], what: Feature | None = None) -> Float[Tensor, "n d"]:
        """Features of each row, float32, as computed by the tower's own forward pass; gradients flow while autograd is on.

        ValueError for features of CLIPs ("pooled", "projected", `Hidden`), and for numbers that are not finite.
        """
        what = self.own_feature if what is None else what
        if not token_rows:
            return self.features(self.tokenize(["a"]), what)[:0]
        return super().features(token_rows, what)

    def looked_up(self, embeds: Float[Tensor, "n t width"]) -> Float[Tensor, "n t width"]:
        scale = getattr(self.table, "embed_scale", None)  # Gemma's
        return embeds if scale is None else embeds * scale.to(embeds.dtype)

    def _check_row(self, row: Sequence[int]) -> str | None:
        least, most = self.reading.dropped[1], self.context_length
        return None if least < len(row) <= most else f"more than {least}, and at most {most}"

    def _features(
        self, ids: Int[Tensor, "n t"], embeds: Tensor | None, token_rows: Sequence[Sequence[int]], what: Feature
    ) -> Float[Tensor, "n d"]:
        if not isinstance(what, SequenceFeature):
            raise ValueError(
                f"{self.name} has token states and no {what!r} features: ask for Readout() or MeanState() "
                '(Drift("l2", feature=Readout()))'
            )
        lengths = torch.tensor([len(row) for row in token_rows], device=ids.device)
        content = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        return what(self.states(ids, content, embeds), self.given(content))

    def given(self, content: Bool[Tensor, "n t"]) -> Bool[Tensor, "n t"]:
        """The places whose states the denoiser is given, from those that hold tokens of rows."""
        kept = torch.ones_like(content) if self.reading.padded else content.clone()
        kept[:, slice(*self.reading.dropped)] = False
        return kept

    def states(
        self, ids: Int[Tensor, "n t"], content: Bool[Tensor, "n t"], embeds: Tensor | None = None
    ) -> Float[Tensor, "n t width"]:
        """The states of all layers that are read, side by side; `embeds` in the place of the tokens' own embeddings."""
        layers, mask = self.reading.layers, content.long() if self.reading.masked else None
        if hasattr(self.module, "_hf_hook") and self.module is not self.tower:
            self.module._hf_hook.pre_forward(self.module)  # offloading waits for calls of the whole module
        told = {"input_ids": ids} if embeds is None else {"inputs_embeds": embeds}
        output = self._forward(attention_mask=mask, output_hidden_states=layers != (-1,), **told)
        if layers == (-1,):
            states: Tensor = output.last_hidden_state
            return states
        return torch.cat([output.hidden_states[layer] for layer in layers], -1)

    def _forward(self, **told: Any) -> Any:
        return self.tower(**told)

    def token_embedding(self) -> Tensor:
        return self.table.weight

    @property
    def device(self) -> torch.device:
        hook = getattr(self.module, "_hf_hook", None) or getattr(self.tower, "_hf_hook", None)
        place = getattr(hook, "execution_device", None)
        if place is None:
            return self.token_embedding().device
        return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)

    # -- identity ------------------------------------------------------------------------------------------------

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        yield from self.tower.state_dict(keep_vars=True).items()

    def architecture(self) -> str:
        said = json.dumps(settings(self.config.to_dict()), sort_keys=True, default=str)
        return f"{type(self.tower).__name__} {said} {self.reading}"


SPACES = "\u2581\u0120"
"""What stands for a space before a word: SentencePiece's mark, and that of byte-level tokenizers."""
