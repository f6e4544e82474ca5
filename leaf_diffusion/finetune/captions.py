"""Captions: from files, the held-out ones, and the order in which training sees them."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.text import neighbours, random_edits
from leaf_diffusion.text.files import read_texts


@dataclass(frozen=True)
class CaptionFile:
    """The captions of a file, stripped, in order, and how many blank ones were left out."""

    texts: list[str]
    blank: int


def read_caption_file(source: str | Path, column: str | None = None, split: str | None = None) -> CaptionFile:
    """The captions of whatever `read_texts` reads: text, JSONL, CSV, TSV, Parquet, COCO's JSON, webdataset tars,
    `dataset:NAME`.

    FileNotFoundError, or ValueError for files without captions or that cannot be read.
    """
    rows = read_texts(source, column=column, split=split)
    texts = [row.text for row in rows if row.text]
    if not texts:
        of_split = "" if split is None else f", split {split!r}"
        raise ValueError(f"no captions in {source}{of_split} ({len(rows)} blank lines): expected one caption a line")
    return CaptionFile(texts, len(rows) - len(texts))


def read_captions(source: str | Path, column: str | None = None, split: str | None = None) -> list[str]:
    """The captions alone of `read_caption_file`."""
    return read_caption_file(source, column, split).texts


def split_captions(
    captions: Sequence[str], held_out: float = 0.1, at_most: int | None = None
) -> tuple[list[str], list[str]]:
    """(training captions, held-out ones): a share of the distinct captions, those of lowest hash, at least one.

    The hash decides, so equal captions never stand on both sides and the order of the captions does not matter.
    """
    ranked = sorted(set(captions), key=lambda text: hashlib.sha256(text.encode()).digest())
    if len(ranked) < 2:
        raise ValueError(f"{len(ranked)} distinct captions cannot be split: give at least 2, or a held-out set")
    n = max(1, int(held_out * len(ranked)))
    kept = ranked[: n if at_most is None else min(n, at_most)]
    out = set(kept)
    return [text for text in captions if text not in out], kept


def reachable_tokens(encoder: TextEncoder, captions: Sequence[str], *, often: int = 4) -> list[int]:
    """Tokens that single edits of the captions lead to, at least `often` times; sorted.

    Every edit of every word, and 40 random ones of each distinct caption (which also join words).
    """
    found: Counter[int] = Counter()
    for word in sorted({word for caption in captions for word in caption.split()}):
        for row in set(encoder.tokenize_candidates(neighbours(word))):
            found.update(set(row))
    for i, caption in enumerate(dict.fromkeys(captions)):
        for row in encoder.tokenize_candidates(random_edits(caption, 40, np.random.default_rng(i))):
            found.update(set(row))
    return sorted(token for token, times in found.items() if times >= often)


def batch_indices(n: int, start: int, count: int, seed: int) -> list[int]:
    """Which of `n` captions stand at `count` positions, from `start` on, of the endless training order.

    Every epoch holds all of them once, in an order that follows from (seed, epoch) alone: a resumed training, another
    number of processes or another split into batches sees the same captions in the same update.
    """
    places = (divmod(position, n) for position in range(start, start + count))
    return [int(_permutation(n, seed, epoch)[place]) for epoch, place in places]


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(n)
