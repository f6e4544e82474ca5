"""The model card of a finetuned encoder."""

import math
from collections.abc import Mapping
from dataclasses import asdict

from huggingface_hub import EvalResult, ModelCardData

from leaf_diffusion import __version__
from leaf_diffusion.finetune.config import TextFAREConfig

_ROWS = (("clean", "clean caption"), ("typos", "random typos"), ("leaf", "LEAF attack"))
_TEMPLATE = """---
{metadata}
---

# Text encoder finetuned with TextFARE

A `CLIPTextModelWithProjection`, finetuned from {name} with leaf_diffusion {version} so that its embeddings stay
close to the original's of the clean caption when characters are edited
([arXiv 2506.03355](https://arxiv.org/abs/2506.03355)). {trained_on}

{held_out} held-out captions ({truncated} of them longer than the context and cut) against the original's clean
embeddings; each attack is made anew on the encoder that it measures. k = {k}. Drift: squared L2 over the embeddings'
mean squared norm.

{accuracy}

| input | cosine before | after | drift before | after |
|---|---|---|---|---|
{table}

{steps} steps of {per_update} captions, out of {captions}.{stopped} Settings:

{settings}

{use}
"""
_ENCODER = """```python
from leaf_diffusion.pipelines import LeafStableDiffusionPipeline

pipe = LeafStableDiffusionPipeline.from_pretrained("the original's pipeline", text_encoder="this folder")
```"""
_LORA = """The weights here are a LoRA of the text encoder, for any pipeline whose text encoder is the original:

```python
pipe.load_lora_weights("this folder")  # diffusers; pytorch_lora_weights.safetensors
encoder = load_text_encoder("the original", adapter="this folder")  # leaf_diffusion, or PEFT on plain transformers
```"""


def model_card(
    name: str,
    config: TextFAREConfig,
    before: Mapping[str, float],
    after: Mapping[str, float],
    counts: Mapping[str, int],
    stopped: str = "",
) -> str:
    """README.md of an encoder finetuned from `name`; `before` and `after` as `held_out_figures` gives them.

    `counts`: steps, per_update, captions, held_out, truncated. `stopped`: why training ended early, in a sentence.
    """
    leaf = "It was trained on captions under the LEAF attack."
    control = "It is a control: it was trained on captions with random typos, which no attack has chosen."
    rows = [
        f"| {label} | {before[f'cosine_{key}']:.3f} | {after[f'cosine_{key}']:.3f} "
        f"| {before[f'drift_{key}']:.3f} | {after[f'drift_{key}']:.3f} |"
        for key, label in _ROWS
    ]
    return _TEMPLATE.format(
        metadata=_metadata(config, after, counts["held_out"]),
        name=f"`{shown(name)}`",  # in a code span nothing of it is Markdown or HTML
        version=__version__,
        trained_on=leaf if config.attack == "leaf" else control,
        k=config.k,
        use=_ENCODER if config.lora_rank is None else _LORA,
        accuracy=f"accuracy_clean: {before['accuracy_clean']:.3f} before, {after['accuracy_clean']:.3f} after, the share of "
        "these captions whose embedding is nearest (cosine) to the original's of the same caption among all of them.",
        table="\n".join(rows),
        stopped=stopped and f" {stopped}",
        settings="\n".join(f"- {key}: {value}" for key, value in asdict(config).items()),
        **counts,
    )


def _metadata(config: TextFAREConfig, after: Mapping[str, float], held_out: int) -> str:
    """The card's YAML: what the Hub reads, with the measured figures in its evaluation-results format ("model-index")."""
    meanings = {
        "cosine": "Cosine to the original's embedding of the clean caption",
        "drift": "Drift from the original's embedding of the clean caption",
    }
    measured = {f"{figure}_{key}": f"{what}, {label}" for figure, what in meanings.items() for key, label in _ROWS}
    measured["accuracy_clean"] = "Top-1 retrieval among the original's embeddings, clean caption"
    results = [
        EvalResult(
            task_type="feature-extraction",
            dataset_type="held-out-captions",
            dataset_name=f"{held_out} held-out captions",
            metric_type=figure,
            metric_name=meaning,
            metric_value=after[figure],
            metric_args={"k": 0 if figure.endswith("_clean") else config.k, "n": held_out},
        )
        for figure, meaning in measured.items()
        if math.isfinite(after[figure])
    ]
    data = ModelCardData(
        library_name="transformers",
        tags=["clip", "text-encoder", "adversarial-robustness", "leaf_diffusion"],
        model_name=f"TextFARE text encoder ({config.attack}, k={config.k})",
        eval_results=results,
    )
    return str(data.to_yaml())


def shown(name: str) -> str:
    """A source's name on one line that any file can hold."""
    return " ".join(name.encode(errors="replace").decode().split()).replace("`", "'")
