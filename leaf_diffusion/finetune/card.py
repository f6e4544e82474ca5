"""The model card (README.md) of whatever was finetuned."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from huggingface_hub import EvalResult, ModelCardData

from leaf_diffusion import __version__
from leaf_diffusion.finetune.config import TrainingConfig
from leaf_diffusion.metrics.bounds import under_attack

Figures = dict[str, float]
"""Held-out figures by name."""

_TEMPLATE = """---
{metadata}
---

# {title}

{introduction}

{protocol}

A figure under attack is {bound}.

{accuracy}| {header} |
|{rule}|
{table}

{steps} steps of {per_update} {examples}, out of {total}.{stopped} Settings:

{settings}
{use}"""


@dataclass(frozen=True)
class Card:
    """What a kind of finetuning says of itself."""

    title: str
    tags: tuple[str, ...]
    examples: str
    """captions, images or pairs: also the name of their number in `counts`."""
    introduction: str
    protocol: str
    """How the figures were measured."""
    columns: Mapping[str, str]
    """The table's columns and what they mean, each "before" and "after"."""
    rows: Mapping[str, tuple[str, ...]]
    """Its rows: the label, and the figure in each column."""
    strength: Mapping[str, float]
    """How strong the attacks are ({"k": 1}); figures whose names end in _clean know none."""
    use: str = ""
    """Python and words, how what was written is used."""
    family: str = "clip"
    """The kind of model, as the Hub's tags have it."""


def model_card(
    card: Card, config: TrainingConfig, before: Figures, after: Figures, counts: Mapping[str, int], stopped: str = ""
) -> str:
    """README.md; `counts`: steps, per_update, held_out, and of `card.examples`. `stopped`: why training ended early, in
    a sentence."""
    header = ["input", *(f"{column} before | after".strip() for column in card.columns)]
    rows = [
        f"| {label} | {' | '.join(f'{figures[key]:.3f}' for key in keys for figures in (before, after))} |"
        for label, keys in card.rows.items()
    ]
    accuracy = (
        f"accuracy_clean: {before['accuracy_clean']:.3f} before, {after['accuracy_clean']:.3f} after, the share of these "
        f"{card.examples} whose features are nearest (cosine) to the original's of the same one among all of them.\n\n"
        if "accuracy_clean" in before
        else ""
    )
    return _TEMPLATE.format(
        metadata=_metadata(card, after, counts["held_out"]),
        title=card.title,
        introduction=card.introduction,
        protocol=card.protocol,
        accuracy=accuracy,
        bound=under_attack(),
        header=" | ".join(header),
        rule="---|" * (2 * len(card.columns)) + "---",
        table="\n".join(rows),
        steps=counts["steps"],
        per_update=counts["per_update"],
        examples=card.examples,
        total=counts[card.examples],
        stopped=stopped and f" {stopped}",
        settings="\n".join(f"- {key}: {value}" for key, value in asdict(config).items()),
        use=card.use and f"\n{card.use}\n",
    )


def _metadata(card: Card, after: Figures, held_out: int) -> str:
    """The card's YAML: what the Hub reads, with the measured figures in its evaluation-results format ("model-index")."""
    measured = {
        key: f"{meaning}, {label}"
        for label, keys in card.rows.items()
        for key, meaning in zip(keys, card.columns.values(), strict=True)
    }
    if "accuracy_clean" in after:
        measured["accuracy_clean"] = f"Top-1 retrieval among the original's features, clean {card.examples}"
    results = [
        EvalResult(
            task_type="feature-extraction",
            dataset_type=f"held-out-{card.examples}",
            dataset_name=f"{held_out} held-out {card.examples}",
            metric_type=figure,
            metric_name=meaning,
            metric_value=after[figure],
            metric_args={
                **{name: 0 if figure.endswith("_clean") else value for name, value in card.strength.items()},
                "n": held_out,
            },
        )
        for figure, meaning in measured.items()
        if math.isfinite(after[figure])
    ]
    data = ModelCardData(
        library_name="transformers",
        tags=[card.family, *card.tags, "adversarial-robustness", "leaf_diffusion"],
        model_name=card.title,
        eval_results=results,
    )
    return str(data.to_yaml())


def made_by() -> str:
    return f"leaf_diffusion {__version__}"


def quoted(name: str) -> str:
    """A source's name in a code span, on one line that any file can hold: nothing of it is Markdown or HTML."""
    return f"`{' '.join(name.encode(errors='replace').decode().split()).replace('`', chr(39))}`"
