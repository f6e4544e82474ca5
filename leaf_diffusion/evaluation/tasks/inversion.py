"""Captions read back from their embeddings, and how much of them came back."""

from __future__ import annotations

from collections.abc import Sequence

from leaf_diffusion.attacks.inversion import invert
from leaf_diffusion.encoders.base import Feature, TextEncoder
from leaf_diffusion.metrics.reconstruction import bleu, has_bleu, token_accuracy, token_overlap, word_accuracy
from leaf_diffusion.runs.experiment_records import Inverted
from leaf_diffusion.scoring.objectives import clean_features


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
