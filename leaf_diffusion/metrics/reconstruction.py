"""How much of a text another one gives back: words, tokens, BLEU. Each in 0..1, 1 for the text itself."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Hashable, Sequence

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(text: str) -> list[str]:
    """Runs of letters and digits in lower case; an apostrophe inside a word belongs to it."""
    return _WORD.findall(text.lower())


def word_accuracy(found: str, text: str) -> float:
    """Share of the words of `text` that stand in `found`, wherever: a word counts as often as both have it.

    1.0 for a text without words. Words that `found` has besides do not count against it.
    """
    return _given_back(words(found), words(text))


def token_overlap(found: Sequence[int], tokens: Sequence[int]) -> float:
    """The same of tokens: the share of `tokens` that stand in `found`, as multisets. 1.0 for no tokens."""
    return _given_back(found, tokens)


def token_accuracy(found: Sequence[int], tokens: Sequence[int]) -> float:
    """Share of the positions of `tokens` where `found` has that very token. 1.0 for no tokens."""
    return sum(a == b for a, b in zip(found, tokens, strict=False)) / len(tokens) if tokens else 1.0


def has_bleu() -> bool:
    """Whether the package sacrebleu is installed."""
    return importlib.util.find_spec("sacrebleu") is not None


def bleu(found: str, text: str) -> float:
    """Sentence BLEU as sacrebleu computes it: 13a tokens in lower case, n-grams up to 4, exponential smoothing, effective
    order (Post 2018). Raises ModuleNotFoundError without sacrebleu.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("BLEU needs the package sacrebleu: pip install sacrebleu") from error
    return float(BLEU(lowercase=True, effective_order=True).sentence_score(found, [text]).score) / 100


def _given_back(found: Sequence[Hashable], wanted: Sequence[Hashable]) -> float:
    return sum((Counter(found) & Counter(wanted)).values()) / len(wanted) if wanted else 1.0
