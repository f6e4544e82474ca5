"""CLIP's tokenizer without a download, and token rows without padding from any tokenizer."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from leaf_diffusion.weights.fingerprints import fingerprint

CLIP_VOCABULARY = 49408
_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""How CLIP's tokenizer splits lower-cased text into pieces, of which each is tokenized on its own."""


@lru_cache(maxsize=1)
def _clip_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of the BPE file inside open_clip (found without importing open_clip, which is slow)."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("CLIP's vocabulary comes with open_clip: pip install open_clip_torch")
    lines = (
        gzip.decompress((Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")
    )
    merges = [(pair[0], pair[1]) for pair in (line.split() for line in lines[1 : CLIP_VOCABULARY - 512 - 2 + 1])]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    return {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}, merges


def is_clip_vocabulary(vocabulary: dict[str, int]) -> bool:
    """Whether these are CLIP's own tokens and ids."""
    return vocabulary == _clip_bpe()[0]


def clip_tokenizer() -> CLIPTokenizer:
    """The real CLIP BPE (49,408 entries, context 77), built in memory; a new object at every call."""
    vocabulary, merges = _clip_bpe()
    # `vocab_file=` would silently map everything to end-of-text; BPE wants the merges as tuples
    return CLIPTokenizer(vocab=dict(vocabulary), merges=list(merges), model_max_length=77)


_fingerprints: dict[bytes, str] = {}


def _fingerprint_of(state: str) -> str:
    """Of a fast tokenizer's JSON, whatever the order of its names. Known ones are kept: sorting takes a tenth of a second."""
    key = hashlib.sha256(state.encode()).digest()
    if key not in _fingerprints:
        _fingerprints[key] = fingerprint("transformers " + json.dumps(json.loads(state), sort_keys=True))
    return _fingerprints[key]


class RowTokenizer:
    """Texts to whole token rows (begin ... end of text, neither cut nor padded).

    Made from a fast tokenizer of transformers or a SimpleTokenizer of open_clip.

    A learnt token of several vectors is read as all of them, as pipelines do. The backend of a fast tokenizer is copied:
    `padding=True` anywhere else would leave padding on in a shared one.
    """

    needs_ends = True
    """Whether there have to be tokens for the begin and the end of a text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._backend: Tokenizer | None = None
        self._several: dict[int, tuple[str, str]] = {}
        self.pad_id: int | None = None
        if hasattr(tokenizer, "sot_token_id"):  # open_clip.SimpleTokenizer
            if getattr(tokenizer, "reduction_fn", None) is not None:
                raise ValueError("an open_clip tokenizer with a reduction mask drops tokens at random; use one without")
            self.bos_id, self.eos_id = int(tokenizer.sot_token_id), int(tokenizer.eot_token_id)
            self.max_id = int(tokenizer.vocab_size) - 1
        elif hasattr(tokenizer, "backend_tokenizer"):
            self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            self._backend.no_padding()
            self._backend.no_truncation()
            self.bos_id, self.eos_id, self.pad_id = (
                tokenizer.bos_token_id,
                tokenizer.eos_token_id,
                tokenizer.pad_token_id,
            )
            self.max_id = max(tokenizer.get_vocab().values())
            self._several = _several(tokenizer.added_tokens_encoder)
        else:
            raise TypeError(
                f"{type(tokenizer).__name__} is no tokenizer known here; "
                "pass a transformers fast tokenizer (CLIPTokenizer) or an open_clip SimpleTokenizer"
            )
        if self.needs_ends and (self.bos_id is None or self.eos_id is None):
            raise ValueError("the tokenizer has no begin- or end-of-text token, so nothing could be pooled")

    @cached_property
    def pieces(self) -> Callable[[Sequence[str]], list[tuple[int, ...]]] | None:
        """The tokens of pieces of lower-case printable ASCII as CLIP splits it; None for tokenizers that split otherwise."""
        if self._backend is None:
            return None
        parts = json.loads(self._backend.to_str())
        kinds = [each["type"] for each in (parts["normalizer"] or {}).get("normalizers", [])]
        splits = (parts["pre_tokenizer"] or {}).get("pretokenizers", [])
        if (
            kinds != ["NFC", "Replace", "Lowercase"]
            or [each["type"] for each in splits] != ["Split", "ByteLevel"]
            or splits[0]["pattern"] != {"Regex": _SPLIT}
            or splits[0]["behavior"] != "Removed"
            or splits[1]["add_prefix_space"]
            or parts["model"]["type"] != "BPE"
            or parts["model"]["dropout"]
        ):
            return None
        # what is a token wherever it stands: CLIP's own two need two "|" and are left to the caller, "!" is SD2's padding
        added = [each for each in parts["added_tokens"] if each["content"].count("|") < 2]
        if not added:
            tokenize = self._backend.model.tokenize
            # tuples of numbers are none of the garbage collector's business
            return lambda pieces: [tuple([token.id for token in tokenize(piece)]) for piece in pieces]
        if any(each["single_word"] or each["lstrip"] or each["rstrip"] for each in added) or any(
            not character.isascii() or character.isalnum() or character.isspace()
            for each in added
            for character in each["content"]
        ):
            return None
        return lambda pieces: [tuple(row[1:-1]) for row in self(pieces)]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 hex over the vocabulary and how texts are cleaned and split."""
        if self._backend is not None:
            return _fingerprint_of(self._backend.to_str())
        clean = getattr(self.tokenizer.clean_fn, "__name__", "")
        return fingerprint(f"open_clip {clean} {sorted(self.tokenizer.encoder.items())}")

    def spelling(self, token: int) -> str:
        """A token as the vocabulary spells it; "</w>" ends the last piece of a word."""
        if self._backend is not None:
            return str(self._backend.id_to_token(token))
        return str(self.tokenizer.decoder[token])

    def text(self, row: Sequence[int]) -> str:
        """What a token row says, without begin and end of text."""
        content = [token for token in row if token not in (self.bos_id, self.eos_id)]
        return str(self.tokenizer.decode(content)).strip()

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        if isinstance(texts, str):
            raise TypeError("expected a list of texts, got one string: put it in a list")
        if self._backend is not None:
            rows = [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts))]
            return [self._whole(row, text) for row, text in zip(rows, texts, strict=True)] if self._several else rows
        return [[self.bos_id, *self.tokenizer.encode(text), self.eos_id] for text in texts]

    def _whole(self, row: list[int], text: str) -> list[int]:
        """The row of a text in which each learnt token stands for all its vectors."""
        assert self._backend is not None
        if not (learnt := {self._several[token] for token in row if token in self._several}):
            return row
        for token, written in learnt:
            text = text.replace(token, written)
        found: list[int] = self._backend.encode(text).ids
        return found


def _several(added: Mapping[str, int]) -> dict[int, tuple[str, str]]:
    """By id the learnt tokens of several vectors, and what diffusers' pipelines write in their place before they tokenize
    (`maybe_convert_prompt`): "<rug> <rug>_1 <rug>_2"."""
    found = {}
    for token, number in added.items():
        names = [token, *takewhile(added.__contains__, (f"{token}_{i}" for i in count(1)))]
        if len(names) > 1:
            found[number] = (token, " ".join(names))
    return found
