"""What a joint finetuning of both towers can be told, and its model card."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from leaf_diffusion import __version__
from leaf_diffusion.finetune.card import shown
from leaf_diffusion.finetune.config import check_numbers, check_warmup

_ROWS = (
    ("recall_clean", "both clean"),
    ("recall_text", "captions attacked"),
    ("recall_image", "images attacked"),
    ("recall_both", "both attacked"),
)
_TEMPLATE = """---
library_name: transformers
tags: [clip, adversarial-robustness, leaf_diffusion]
---

# CLIP towers finetuned together

The text tower (`text`) of {text} and the image tower (`image`) of {image}, finetuned together with leaf_diffusion {version}: attacked
captions and attacked images are drawn back to the originals' clean features, and their similarities to the originals'.

Recall@1 of images by captions among {held_out} held-out pairs; attacks are run anew on the towers that they measure.

| | before | after |
|---|---|---|
{table}

{steps} steps of {batch} pairs, out of {pairs}. Settings:

{settings}
"""


@dataclass(frozen=True)
class JointConfig:
    """The recipe of `finetune_both`."""

    rho: int = 50
    """Candidates of each of the LEAF attack's two stages."""
    slots: int | None = None
    """Candidates of its first stage, where other than rho."""
    k: int = 1
    """Character edits a caption."""
    constraint: Literal["no-new-words", "published", "none"] = "no-new-words"
    eps: float = 2.0
    """How far a pixel may move, in steps of 1/255."""
    attack_steps: int = 10
    """Steps of PGD on each batch."""
    pair_weight: float = 1.0
    """Weight of the pairs' similarities beside the two relative losses; 0 trains the towers side by side."""
    temperature: float = 0.07
    """Cosines are divided by it before the softmax."""
    batch_size: int = 128
    max_steps: int = 10_000
    lr: float = 1e-5
    weight_decay: float = 1e-4
    """On matrices; gains, biases and token embeddings are left out."""
    warmup_steps: int = 700
    """Updates of linear warm-up; a cosine to zero follows."""
    seed: int = 0
    eval_every: int = 500
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        check_numbers(
            self,
            counts=("rho", "slots", "k", "attack_steps", "batch_size", "max_steps", "eval_every", "checkpoint_every"),
            positive=("eps", "lr", "temperature"),
            from_zero=("weight_decay", "warmup_steps", "pair_weight"),
        )
        check_warmup(self.warmup_steps, self.max_steps)


def joint_card(
    text: str,
    image: str,
    config: JointConfig,
    before: Mapping[str, float],
    after: Mapping[str, float],
    counts: Mapping[str, int],
) -> str:
    """README.md of both towers; `before` and `after` as `pair_figures` gives them, `counts`: steps, pairs, held_out."""
    rows = [f"| {label} | {before[key]:.3f} | {after[key]:.3f} |" for key, label in _ROWS]
    rows += [
        f"| drift of attacked {what}s | {before[key]:.3f} | {after[key]:.3f} |"
        for key, what in (("drift_text", "caption"), ("drift_image", "image"))
    ]
    return _TEMPLATE.format(
        text=f"`{shown(text)}`",  # in code spans nothing of them is Markdown or HTML
        image=f"`{shown(image)}`",
        version=__version__,
        table="\n".join(rows),
        batch=config.batch_size,
        settings="\n".join(f"- {key}: {value}" for key, value in asdict(config).items()),
        **counts,
    )
