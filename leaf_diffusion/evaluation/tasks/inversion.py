"""Captions read back from their embeddings: what can be asked, and how much of them came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from leaf_diffusion.attacks.inversion import invert
from leaf_diffusion.encoders.base import Feature, TextEncoder
from leaf_diffusion.evaluation.results import Setting
from leaf_diffusion.evaluation.tasks.options import PromptRunOptions, check_counts
from leaf_diffusion.metrics.reconstruction import bleu, has_bleu, token_accuracy, token_overlap, word_accuracy
from leaf_diffusion.reports.metrics import WORDS_BACK
from leaf_diffusion.runs.experiment_records import Inverted
from leaf_diffusion.scoring.objectives import clean_features


@dataclass(frozen=True, kw_only=True)
class InversionOptions(PromptRunOptions):
    """Read captions back from their embeddings, by projected gradient over token embeddings."""

    renamed: ClassVar[Mapping[str, str]] = {"--steps": "--search-steps"}
    search_steps: int = 300
    """Gradient steps; the paper takes 3,000."""
    learning_rate: float = 0.1
    weight_decay: float = 0.1
    vocabulary: Literal["all", "seen"] = "all"
    """Tokens that may be chosen. seen: those that the world's CLIP read in training; the others' embeddings are still
    their random first ones."""
    batch_size: int = 8
    """Captions inverted side by side."""
    seed: int = 0
    """Of the tokens to start from."""

    def __post_init__(self) -> None:
        check_counts(self, "limit", "search_steps", "batch_size")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError("--learning-rate must be positive and --weight-decay not negative")

    def main_setting(self, labels: Sequence[str]) -> Setting:
        """The words that are given back."""
        return Setting(labels[1], WORDS_BACK.key)


def read_back(
    encoder: TextEncoder,
    label: str,
    texts: Sequence[str],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    vocabulary: Sequence[int] | None,
    feature: Feature,
    seed: int,
) -> list[Inverted]:
    """The texts found for the encoder's own embeddings of `texts`, with as many free tokens as each has; the options are
    those of `attacks.inversion.invert`."""
    given = encoder.preprocess(texts)
    rows, truncated = encoder.tokenize(given), encoder.is_truncated(given)
    found = invert(
        encoder,
        clean_features(encoder, texts, feature),
        [len(row) - 2 for row in rows],
        texts,
        steps=steps,
        lr=lr,
        weight_decay=weight_decay,
        vocabulary=vocabulary,
        feature=feature,
        seed=seed,
    )
    records = []
    for text, row, cut, each in zip(texts, rows, truncated, found, strict=True):
        said, tokens, wanted = encoder.rows.text(each.token_ids), each.token_ids[1:-1], row[1:-1]
        record = Inverted(
            encoder=label,
            prompt=text,
            found=said,
            tokens=tokens,
            truncated=cut,
            step=each.step,
            cosine=each.cosine,
            word_accuracy=word_accuracy(said, text),
            token_overlap=token_overlap(tokens, wanted),
            token_accuracy=token_accuracy(tokens, wanted),
            bleu=bleu(said, text) if has_bleu() else None,
        )
        records.append(record)
    return records
