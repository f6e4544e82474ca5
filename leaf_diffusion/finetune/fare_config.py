"""What a FARE finetuning can be told; the defaults are the paper's recipe for ViT-L/14. And its model card."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from leaf_diffusion import __version__
from leaf_diffusion.finetune.card import shown
from leaf_diffusion.finetune.config import check_choices, check_numbers, check_warmup

_CHOICES = {"mixed_precision": ("no", "fp16", "bf16"), "save_dtype": ("float32", "float16")}
_ROWS = (("clean", "clean image"), ("noise", "random noise of size eps"), ("apgd", "APGD"))
_TEMPLATE = """---
library_name: transformers
tags: [clip, image-encoder, adversarial-robustness, leaf_diffusion]
---

# Image encoder finetuned with FARE

A `CLIPVisionModelWithProjection`, finetuned from {name} with leaf_diffusion {version} so that its features stay close
to the original's of the clean image when every pixel moves by up to {eps:g}/255
([arXiv 2402.12336](https://arxiv.org/abs/2402.12336)).

{held_out} held-out images against the original's clean features; APGD of {apgd_steps} steps is run anew on the tower
that it measures. Drift: squared L2 over the features' mean squared norm.

accuracy_clean: {accuracy_before:.3f} before, {accuracy_after:.3f} after, the share of these images whose features are
nearest (cosine) to the original's of the same image among all of them.

| input | cosine before | after | drift before | after |
|---|---|---|---|---|
{table}

{steps} steps of {per_update} images, out of {images}. Settings:

{settings}

```python
from leaf_diffusion.encoders.image_encoder import load_image_encoder

encoder = load_image_encoder("this folder")
```
"""


@dataclass(frozen=True)
class FAREConfig:
    """The recipe. An update sees `batch_size * accumulation * processes` images."""

    eps: float = 2.0
    """How far a pixel may move, in steps of 1/255."""
    attack_steps: int = 10
    """Steps of PGD on each batch."""
    batch_size: int = 128
    """Images that a process attacks and learns from at once."""
    accumulation: int = 1
    """Batches an update."""
    max_steps: int = 10_000
    """Updates."""
    lr: float = 1e-5
    weight_decay: float = 1e-4
    """On matrices; gains and biases are left out."""
    warmup_steps: int = 700
    """Updates of linear warm-up; a cosine to zero follows."""
    seed: int = 0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    eval_every: int = 500
    """Updates between held-out measurements; before and after training they are always made."""
    checkpoint_every: int = 500
    """Updates between checkpoints."""
    save_dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        check_numbers(
            self,
            counts=("attack_steps", "batch_size", "accumulation", "max_steps", "eval_every", "checkpoint_every"),
            positive=("eps", "lr"),
            from_zero=("weight_decay", "warmup_steps"),
        )
        if self.eps > 255:
            raise ValueError(f"eps counts steps of 1/255, so it is at most 255, got {self.eps}")
        check_warmup(self.warmup_steps, self.max_steps)
        check_choices(self, _CHOICES)


def image_card(
    name: str,
    config: FAREConfig,
    before: Mapping[str, float],
    after: Mapping[str, float],
    counts: Mapping[str, int],
) -> str:
    """README.md of a tower finetuned from `name`; `before` and `after` as `image_figures` gives them, `counts`: steps,
    per_update, images, held_out."""
    rows = [
        f"| {label} | {before[f'cosine_{key}']:.3f} | {after[f'cosine_{key}']:.3f} "
        f"| {before[f'drift_{key}']:.3f} | {after[f'drift_{key}']:.3f} |"
        for key, label in _ROWS
    ]
    return _TEMPLATE.format(
        name=f"`{shown(name)}`",  # in a code span nothing of it is Markdown or HTML
        version=__version__,
        eps=config.eps,
        apgd_steps=2 * config.attack_steps,
        accuracy_before=before["accuracy_clean"],
        accuracy_after=after["accuracy_clean"],
        table="\n".join(rows),
        settings="\n".join(f"- {key}: {value}" for key, value in asdict(config).items()),
        **counts,
    )
