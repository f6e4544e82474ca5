"""Embedding inversion: how much of a caption can be read back from its embedding alone.

Paper: section 4, text-embedding inversion: projected gradient over token embeddings (PEZ, Wen et al. 2023), 3,000 steps at
a rate of 0.1, 100 COCO captions. Each encoder's own embedding of a caption is the target, and as many tokens are free as
the caption has. Runs as `leaf-diffusion invert` and as `python eval/inversion.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from leaf_diffusion.attacks.inversion import invert
from leaf_diffusion.encoders.base import Feature
from leaf_diffusion.evaluation.experiment import Common, Experiment, Setting, Stage, load_encoders, run
from leaf_diffusion.evaluation.prompts import Prompt, from_file, from_world
from leaf_diffusion.evaluation.t2i.plan import content_id
from leaf_diffusion.metrics.reconstruction import bleu, has_bleu, token_accuracy, token_overlap, word_accuracy
from leaf_diffusion.reports.metrics import BLEU, COSINE, TOKENS_BACK, TOKENS_IN_PLACE, WORDS_BACK
from leaf_diffusion.reports.pages.experiment import Example, ExampleCell, Page, Section, matrices
from leaf_diffusion.runs import RunStore
from leaf_diffusion.scoring.objectives import clean_features
from leaf_diffusion.text.visible import isolated
from leaf_diffusion.world import seen_tokens

NO_BLEU = "BLEU is left out: it needs the package sacrebleu (pip install sacrebleu)."
SHOWN = 12
"""Captions with examples on the page."""


@dataclass(frozen=True)
class InversionOptions(Common):
    """Read captions back from their embeddings, by projected gradient over token embeddings."""

    prompts: Path | None = None
    """Any file of texts that `leaf-diffusion evaluate` reads. Default: the world's own prompts, of one and two things."""
    prompt_column: str | None = None
    limit: int | None = None
    """Number of captions. Default: 24 of the world's, all of a file's."""
    prompt_seed: int = 0
    steps: int = 300
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
        for name in ("limit", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError("--learning-rate must be positive and --weight-decay not negative")


class InversionExperiment(Experiment[InversionOptions]):
    name = "invert"

    def __init__(self, options: InversionOptions) -> None:
        super().__init__(options)
        if options.prompts is None:
            self.prompts = from_world(options.limit or 24, options.prompt_seed, two=0.5)
        else:
            self.prompts = from_file(options.prompts, options.prompt_column)[: options.limit]
        self.encoders = load_encoders(options.encoders, options.device)
        for encoder in self.encoders.values():
            encoder.module.requires_grad_(False)
        projected = all(encoder.has_projection for encoder in self.encoders.values())
        self.feature: Feature = "projected" if projected else "pooled"
        self.metrics = [COSINE, WORDS_BACK, TOKENS_BACK, TOKENS_IN_PLACE]
        if has_bleu():
            self.metrics.append(BLEU)

    def settings(self) -> dict[str, Any]:
        prints = {label: encoder.fingerprint for label, encoder in self.encoders.items()}
        texts = [prompt.text for prompt in self.prompts]
        return {"fingerprints": prints, "texts": texts, "feature": str(self.feature), "bleu": has_bleu()}

    def stages(self) -> Sequence[Stage]:
        units = {
            content_id(unit="inversion", encoder=label, prompt_id=prompt.id): (label, prompt)
            for label in self.encoders
            for prompt in self.prompts
        }
        return [Stage("inversions", units, self.invert, self.options.batch_size)]

    def invert(self, store: RunStore, units: Sequence[tuple[str, Prompt]]) -> list[dict[str, Any]]:
        records: dict[tuple[str, str], dict[str, Any]] = {}
        options = self.options
        for label in dict.fromkeys(label for label, _ in units):
            encoder = self.encoders[label]
            texts = [prompt.text for other, prompt in units if other == label]
            given = encoder.preprocess(texts)
            rows, truncated = encoder.tokenize(given), encoder.is_truncated(given)
            found = invert(
                encoder,
                clean_features(encoder, texts, self.feature),
                [len(row) - 2 for row in rows],
                texts,
                steps=options.steps,
                lr=options.learning_rate,
                weight_decay=options.weight_decay,
                vocabulary=sorted(seen_tokens()) if options.vocabulary == "seen" else None,
                feature=self.feature,
                seed=options.seed,
            )
            for text, row, cut, each in zip(texts, rows, truncated, found, strict=True):
                said = encoder.rows.text(each.token_ids)
                tokens, wanted = each.token_ids[1:-1], row[1:-1]
                records[label, text] = {
                    "encoder": label,
                    "prompt": text,
                    "found": said,
                    "tokens": tokens,
                    "truncated": cut,
                    "step": each.step,
                    COSINE.key: each.cosine,
                    WORDS_BACK.key: word_accuracy(said, text),
                    TOKENS_BACK.key: token_overlap(tokens, wanted),
                    TOKENS_IN_PLACE.key: token_accuracy(tokens, wanted),
                } | ({BLEU.key: bleu(said, text)} if has_bleu() else {})
        return [records[label, prompt.text] for label, prompt in units]

    def values(self, records: Mapping[str, Sequence[dict[str, Any]]]) -> dict[Setting, dict[str, float]]:
        found: dict[Setting, dict[str, float]] = {}
        for record in records["inversions"]:
            for metric in self.metrics:
                found.setdefault(Setting(record["encoder"], metric.key), {})[record["prompt"]] = record[metric.key]
        return found

    def extra(self, records: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
        steps = [record["step"] for record in records["inversions"]]
        return {
            "truncated": sum(record["truncated"] for record in records["inversions"]),
            "mean_best_step": sum(steps) / len(steps),
            "left_out": [] if has_bleu() else [BLEU.key],
        }

    def page(self, rows: Sequence[dict[str, Any]], records: Mapping[str, Sequence[dict[str, Any]]]) -> Page:
        counts = self.extra(records)
        tables = matrices(rows, self.metrics, label=lambda row: f"{self.options.steps} steps")
        examples = [
            Example(
                prompt.text,
                [
                    ExampleCell(record["encoder"], record["found"],
                                note=f"cosine {record['cosine']:.3f}, words {WORDS_BACK.show(record['word_accuracy'])}")
                    for record in records["inversions"] if record["prompt"] == prompt.text
                ],
            )
            for prompt in self.prompts[:SHOWN]
        ]  # fmt: skip
        about = "Each encoder's own embedding of a caption is inverted; as many tokens are free as the caption has."
        sections = [
            Section("Read back", about, tables),
            Section("Examples", "The captions, and what was found.", examples=examples),
        ]
        facts = {
            "captions": str(len(self.prompts)),
            "steps": str(self.options.steps),
            "vocabulary": self.options.vocabulary,
            "feature": str(self.feature),
        }
        notes = [
            f"{counts['truncated']} captions are cut at the context length. The best text was met at step "
            f"{counts['mean_best_step']:.0f} on average.",
        ]
        means = [row for row in rows if row["metric"] == WORDS_BACK.key and row["baseline"] is None]
        said = ", ".join(f"{isolated(row['encoder'])} {WORDS_BACK.show(row['mean'])}" for row in means)
        return Page("embedding inversion", f"Words given back: {said}", facts, list(self.encoders), sections,
                    notes if has_bleu() else [*notes, NO_BLEU])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    if not has_bleu():
        print(NO_BLEU)
    return run(InversionExperiment, InversionOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
