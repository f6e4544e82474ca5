"""Tokenizers from folders and repositories, in them or beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils.hub import cached_file

from leaf_diffusion.tokens.tokenizer import CLIP_VOCABULARY, clip_tokenizer
from leaf_diffusion.weights.errors import loading
from leaf_diffusion.weights.models import Where

MOST_TOKENS = 10_000_000
ABSENT = {"_raise_exceptions_for_missing_entries": False}
FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
"""One of these has to be there: without, transformers would quietly build a tokenizer of three tokens."""


def tokenizer_beside(source: str, where: Where) -> Any:
    """The tokenizer in the folder of a text encoder, or in that beside it, as pipelines have them ("tokenizer_2" of
    "text_encoder_2"). FileNotFoundError where there is none."""
    revision, part = where.get("revision"), where.get("subfolder") or ""
    places = [(source, part)]
    if part.startswith("text_encoder"):
        places.append((source, part.replace("text_encoder", "tokenizer")))
    elif (folder := Path(source)).is_dir() and folder.absolute().name.startswith("text_encoder"):
        places.append((str(folder.absolute().parent), folder.absolute().name.replace("text_encoder", "tokenizer")))
    for place, subfolder in places:
        if (tokenizer := stored_tokenizer(place, subfolder, revision)) is not None:
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token  # what it pads with is masked
            return tokenizer
    raise FileNotFoundError(
        f"no tokenizer for {source!r}: there is no tokenizer.json in {' or '.join(at(each) or 'it' for _, each in places)}; "
        "pass tokenizer=..."
    )


def tokenizer_from(source: str, subfolder: str | None, revision: str | None, vocabulary: int | None = None) -> Any:
    """The tokenizer of a CLIP: that of the folder or repository, or CLIP's own where the vocabulary is of its size.
    FileNotFoundError where neither is to be had."""
    found = stored_tokenizer(source, subfolder, revision)
    return clip_tokenizer_for(source, subfolder, vocabulary) if found is None else found


def stored_tokenizer(source: str, subfolder: str | None, revision: str | None) -> Any:
    """The tokenizer of a folder or repository, None where it has none."""
    where = {"revision": revision, "subfolder": subfolder or ""}
    try:
        present = any(cached_file(source, name, **where, **ABSENT) for name in FILES)
        if present:
            with loading(source, f"the tokenizer in {subfolder or 'it'} cannot be read"):
                tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **where)
                if (largest := max(tokenizer.get_vocab().values())) > MOST_TOKENS:  # it is written out id by id
                    raise ValueError(f"{source}: the tokenizer has a token of id {largest}, which no encoder has")
                return tokenizer
    except OSError as error:
        raise FileNotFoundError(f"no tokenizer for {source!r}: {str(error).strip().splitlines()[0]}") from error
    return None


def clip_tokenizer_for(source: str, subfolder: str | None, vocabulary: int | None) -> Any:
    """CLIP's own tokenizer, for a vocabulary of its size. FileNotFoundError for others."""
    if vocabulary == CLIP_VOCABULARY:
        return clip_tokenizer()  # robust CLIP repositories often say "use the base model's": it is this one
    raise FileNotFoundError(
        f"no tokenizer for {source!r}: neither {at(subfolder)}tokenizer.json nor vocab.json is there; "
        "pass tokenizer=..."
    )


def at(subfolder: str | None) -> str:
    return f"{subfolder}/" if subfolder else ""
