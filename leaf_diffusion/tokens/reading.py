"""How a pipeline reads a prompt with a text encoder that is no CLIP: what is written around it, and where rows are cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from tokenizers import Tokenizer

from leaf_diffusion.tokens.tokenizer import RowTokenizer
from leaf_diffusion.weights.fingerprints import fingerprint


@dataclass(frozen=True)
class Lowered:
    """A text in small letters, without spaces at its ends."""

    name: ClassVar[str] = "lowered"

    def __call__(self, text: str) -> str:
        return text.lower().strip()


@dataclass(frozen=True)
class Reading:
    """From a prompt's text to the token states that a denoiser is given.

    `longest`: tokens of a row, those of a template among them; longer rows are cut. `clean`: what the prompt itself goes through
    first, with a `repr` that says so and the `name` by which it is stored. `before`, `after`: what is written around it; or `chat`:
    it is a user's message, and these are the arguments of the tokenizer's chat template (None: no chat). `layers`: the hidden
    states, as transformers counts them (0: embeddings, -1: the last, after the final norm), side by side. `dropped`: the places
    [first, last) of a row whose states are not given. `padded`: rows are filled up to `longest` with padding, whose states are
    given as well. `masked`: whether the tower is told what is padding.
    """

    longest: int
    before: str = ""
    after: str = ""
    chat: tuple[tuple[str, bool], ...] | None = None
    clean: Callable[[str], str] | None = None
    layers: tuple[int, ...] = (-1,)
    dropped: tuple[int, int] = (0, 0)
    padded: bool = False
    masked: bool = True

    def __post_init__(self) -> None:
        first, last = self.dropped
        if not 0 <= first <= last < self.longest or not self.layers:
            raise ValueError(f"{self}: of {self.longest} tokens the places {first} to {last} cannot be dropped")


class PromptTokenizer(RowTokenizer):
    """Prompts to token rows as a pipeline makes them, with its template and special tokens, not padded.

    ValueError for a chat without a template in the tokenizer, and for padding on the left where its states are given.
    """

    needs_ends = False

    def __init__(self, tokenizer: Any, reading: Reading) -> None:
        super().__init__(tokenizer)
        if self._backend is None:
            raise TypeError(f"{type(tokenizer).__name__} is no fast tokenizer of transformers")
        if reading.chat is not None and not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template, which the pipeline writes prompts by")
        if self.pad_id is None:
            raise ValueError("the tokenizer has no padding token")
        if self._several:
            raise ValueError("learnt tokens of several vectors are read by CLIPs alone")
        if reading.padded and tokenizer.padding_side != "right":
            raise ValueError("the tokenizer pads on the left, and the states of padding are given to the denoiser")
        self.reading = reading
        self._cutting = Tokenizer.from_str(self._backend.to_str())
        self._cutting.enable_truncation(reading.longest, direction=tokenizer.truncation_side)

    def written(self, text: str) -> str:
        """The prompt with what is written around it."""
        reading = self.reading
        if reading.clean is not None:
            text = reading.clean(text)
        if reading.chat is None:
            return reading.before + text + reading.after
        messages = [{"role": "user", "content": text}]
        chat = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **dict(reading.chat)
        )
        return str(chat)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The rows, not cut."""
        if isinstance(texts, str):
            raise TypeError("expected a list of texts, got one string: put it in a list")
        return super().__call__([self.written(text) for text in texts])

    def cut(self, texts: Sequence[str]) -> list[list[int]]:
        """The rows as the tower is given them, cut to `longest` tokens as the tokenizer itself cuts."""
        written = [self.written(text) for text in texts]
        return [encoding.ids for encoding in self._cutting.encode_batch_fast(written)]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 hex over the vocabulary, how texts are split, and what is written around them."""
        template = self.tokenizer.chat_template if self.reading.chat is not None else None
        return fingerprint(f"{super().fingerprint} {self.reading} {json.dumps(template)}")
