"""The model cards of finetuned text encoders."""

from leaf_diffusion.finetune.anchors import FEATURES
from leaf_diffusion.finetune.card import Card, made_by, quoted
from leaf_diffusion.finetune.config import TextFAREConfig

ROWS = {
    label: (f"cosine_{key}", f"drift_{key}")
    for key, label in (("clean", "clean caption"), ("typos", "random typos"), ("leaf", "LEAF attack"))
}
_ENCODER = """```python
from leaf_diffusion.pipelines import LeafStableDiffusionPipeline

pipe = LeafStableDiffusionPipeline.from_pretrained("the original's pipeline", text_encoder="this folder")
```"""
_LORA = """The weights here are a LoRA of the text encoder, for any pipeline whose text encoder is the original:

```python
pipe.load_lora_weights("this folder")  # diffusers; pytorch_lora_weights.safetensors
encoder = load_text_encoder("the original", adapter="this folder")  # leaf_diffusion, or PEFT on plain transformers
```"""
_SEQUENCE = """```python
from leaf_diffusion import harden, load_text_encoder

encoder = load_text_encoder("this folder")  # reads prompts as it was trained to (reading.json)
pipe = harden(pipe, text_encoder="this folder")  # or text_encoder_2=, text_encoder_3=: the component that it was
```"""
_SEQUENCE_LORA = """The weights here are a LoRA of the text encoder, as a PEFT adapter:

```python
pipe.text_encoder.load_adapter("this folder")  # transformers; the component that it was made of
encoder = load_text_encoder("the original", adapter="this folder")  # leaf_diffusion, merged; or PEFT on plain transformers
```

Diffusers' `load_lora_weights` loads no LoRA of such text encoders."""


def text_card(name: str, config: TextFAREConfig, held_out: dict[str, int], *, projected: bool = True) -> Card:
    """The card of a CLIP finetuned from `name`; `held_out`: held_out, truncated."""
    kind, what = ("CLIPTextModelWithProjection", "embeddings") if projected else ("CLIPTextModel", "pooled states")
    without = (
        "" if projected else " The original has no projection into the joint space, so its pooled states are learnt."
    )
    if config.feature != "own":
        what, without = f"{FEATURES[config.feature].name}s", ""
    use = _ENCODER if config.lora_rank is None else _LORA
    return _card(name, config, held_out, f"`{kind}`", what, without, "clip", "embedding", use)


def sequence_card(
    name: str, config: TextFAREConfig, held_out: dict[str, int], kind: str, family: str, said: str
) -> Card:
    """The card of another text encoder, of the class `kind` and transformers' model type `family`; `said`: the feature."""
    what = f"token states ({said})"
    use = _SEQUENCE if config.lora_rank is None else _SEQUENCE_LORA
    return _card(name, config, held_out, f"`{kind}`", what, "", family, "states", use)


def _card(
    name: str,
    config: TextFAREConfig,
    held_out: dict[str, int],
    kind: str,
    what: str,
    remark: str,
    family: str,
    one: str,
    use: str,
) -> Card:
    """`what`: what is learnt, `one`: of one caption."""
    leaf = "It was trained on captions under the LEAF attack."
    control = "It is a control: it was trained on captions with random typos, which no attack has chosen."
    return Card(
        title=f"Text encoder finetuned with TextFARE ({config.attack}, k={config.k})",
        tags=("text-encoder",),
        examples="captions",
        introduction=f"A {kind}, finetuned from {quoted(name)} with {made_by()} so that its {what} stay close to the "
        "original's of the clean caption when characters are edited "
        f"([arXiv 2506.03355](https://arxiv.org/abs/2506.03355)).{remark} "
        + (leaf if config.attack == "leaf" else control),
        protocol=f"{held_out['held_out']} held-out captions ({held_out['truncated']} of them longer than the context and "
        f"cut) against the original's clean {what}; each attack is made anew on the encoder that it measures. "
        f"k = {config.k}. Drift: squared L2 over their mean squared norm.",
        columns={
            "cosine": f"Cosine to the original's {one} of the clean caption",
            "drift": f"Drift from the original's {one} of the clean caption",
        },
        rows=ROWS,
        strength={"k": config.k},
        use=use,
        family=family,
    )
