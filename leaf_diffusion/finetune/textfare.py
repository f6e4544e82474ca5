"""TextFARE (paper, section 3): a text tower whose embeddings survive character edits of the text."""

import hashlib
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.functional import normalize

from leaf_diffusion.attacks import Attack, LeafAttack, RandomTypos
from leaf_diffusion.attacks.base import check_prompts
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.finetune.anchors import (
    AnchorDrift,
    Anchors,
    attack_captions,
    distances,
    embed,
    learnt,
    states_loss,
    textfare_loss,
)
from leaf_diffusion.finetune.captions import split_captions
from leaf_diffusion.finetune.card import Card, Figures, made_by, quoted
from leaf_diffusion.finetune.config import TextFAREConfig
from leaf_diffusion.finetune.loop import HELD_OUT, OnLog, Task, hashed, train
from leaf_diffusion.finetune.lora import add_lora, save_lora
from leaf_diffusion.finetune.replay import Pairs, Replay
from leaf_diffusion.finetune.save import save_encoder
from leaf_diffusion.finetune.tower import (
    Features,
    check_encoder,
    check_tokens,
    merge_table,
    token_states,
    trainable_copy,
)
from leaf_diffusion.finetune.workers import AttackWorkers
from leaf_diffusion.scoring import Scorer
from leaf_diffusion.text import Constraint, constraint_from_name

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


def finetune_text_encoder(
    encoder: TextEncoder,
    captions: Sequence[str],
    output: Path | str,
    config: TextFAREConfig | None = None,
    *,
    held_out: Sequence[str] | None = None,
    start: TextEncoder | None = None,
    tokens: Sequence[int] | None = None,
    on_log: OnLog | None = None,
) -> Path:
    """Finetune a copy of `encoder` (a transformers CLIP text tower) and save it in `output`; returns that folder.

    Minimises the squared L2 distance between the original's embedding of a caption and the copy's of the attacked one
    (paper, section 3): the projected one, or the pooled state of a tower without a projection. `held_out` captions are
    measured on; default: a tenth of `captions`, 256 at most. `start`: an encoder of the same shape whose weights the
    copy begins with (a further stage); the anchor stays `encoder`. `tokens`: the only ones whose rows of the token
    table are trained (default: all), such as `reachable_tokens` of the captions: the whole table's gradient and moments
    are most of a small tower's. The folder is a Hugging Face one: safetensors, tokenizer, README.md with the figures;
    and training_log.jsonl. With `config.lora_rank` it holds a LoRA instead: a PEFT adapter and the file of diffusers.

    Continues, returns and raises as `train`; ValueError also for captions or an encoder that cannot serve.
    """
    config, original = config or TextFAREConfig(), check_encoder(encoder)
    captions = check_prompts(captions)
    if held_out is None:
        captions, held_out = split_captions(captions, at_most=HELD_OUT)
    held_out = check_prompts(held_out)
    if not captions or not held_out:
        raise ValueError(f"{len(captions)} captions to train on and {len(held_out)} held out: there must be some")
    begin = original if start is None else check_encoder(start)
    return train(TextFARE(original, begin, captions, held_out, config, tokens), Path(output), on_log)


class TextFARE(Task[Pairs]):
    """Captions under the LEAF attack, drawn back to the original's embeddings of the clean ones."""

    examples = "captions"
    config: TextFAREConfig

    def __init__(
        self,
        original: HFTextEncoder,
        begin: HFTextEncoder,
        captions: Sequence[str],
        held: Sequence[str],
        config: TextFAREConfig,
        tokens: Sequence[int] | None = None,
    ) -> None:
        super().__init__(config, len(captions), original.device)
        self.original, self.begin, self.captions, self.held = original, begin, captions, held
        self.tokens = None if tokens is None else sorted(set(tokens))
        self.constraint = constraint_from_name(config.constraint)
        if begin is not original and config.lora_rank is not None:
            raise ValueError(
                "a LoRA holds what differs from its base, so it cannot begin at another encoder: leave start out"
            )
        if begin.has_projection != original.has_projection:
            raise ValueError(
                f"one of {original.name} and {begin.name} has no projection: both are to have one, or none"
            )
        if self.tokens is not None:
            check_tokens(original, self.tokens, config)
        if not original.has_projection:
            self.remark = (
                f"{original.name} has no text projection: its pooled states are learnt, not projected embeddings"
            )

    def identity(self) -> dict[str, JsonValue]:
        found: dict[str, JsonValue] = {"captions": hashed(self.captions), "held_out": hashed(self.held)}
        found["encoder"] = self.original.fingerprint
        if not self.original.has_projection:
            found["feature"] = "pooled"
        if self.begin is not self.original:
            found["start"] = self.begin.fingerprint
        if self.tokens is not None:
            found["tokens"] = hashlib.sha256(repr(self.tokens).encode()).hexdigest()
        return found

    def build(self, batches: int) -> nn.Module:
        config = self.config
        spelling = config.spelling and config.lora_rank is None
        self.tower = trainable_copy(self.begin, spelling=spelling, tokens=self.tokens)
        if config.lora_rank is not None:
            spelling_of = self.original.tokenizer if config.spelling else None
            table = config.lora_token_embedding
            add_lora(self.tower, config.lora_rank, config.seed, token_embedding=table, spelling_of=spelling_of)
        self.tower = self.tower.to(self.accelerator.device)
        self.trained = HFTextEncoder(self.tower, self.original.tokenizer, name="trained")
        self.attacker, self.replay = config.new_attack(), Replay(config.replayed, config.replay_size)
        self.anchors, self.spelling = Anchors(self.original, self.captions_at, batches), None
        self.workers: AttackWorkers | None = None
        if config.workers:
            self.workers = AttackWorkers(
                config.workers, self.attacker, self.trained, lambda number: (self.captions_at(number), self.seed(number)),
                batches, k=config.k, constraint=self.constraint,
            )  # fmt: skip
        return Features(self.trained)

    def captions_at(self, number: int) -> list[str]:
        return [self.captions[i] for i in self.indices(number)]

    def attack(self, number: int, seed: int) -> Pairs:
        clean = self.anchors[number].to(self.accelerator.device)
        with self.accelerator.autocast():
            attacked = attack_captions(
                self.attacker, self.trained, self.captions_at(number), clean, k=self.config.k,
                constraint=self.constraint, seed=seed, precision=self.config.attack_precision,
                search=None if self.workers is None else partial(self.workers, number),
            )  # fmt: skip
        fresh = Pairs(self.indices(number), self.trained.tokenize(attacked), clean)
        draw = number * self.accelerator.num_processes + self.accelerator.process_index
        return self.replay.mixed(fresh, (self.config.seed, draw))

    def loss(self, model: nn.Module, batch: Pairs) -> Tensor:
        if not self.config.states_weight:
            return textfare_loss(model(batch.rows, [])[0], batch.anchors)
        captions = [self.captions[i] for i in batch.captions]
        seen, begins, anchor = token_states(self.original, captions, batch.rows, self.config.states_captions)
        features, states = model(batch.rows, seen)
        apart = states_loss(states.view_as(anchor), anchor.to(states.device), begins)
        return textfare_loss(features, batch.anchors) + self.config.states_weight * apart

    @cached_property
    def targets(self) -> Float[Tensor, "n d"]:
        """The original's embeddings of the held-out captions."""
        return embed(self.original, self.held)

    def measure(self, *, trained: bool) -> Figures:
        encoder = self.trained if trained else self.original
        return held_out_figures(encoder, self.held, self.targets, k=self.config.k, constraint=self.constraint)

    def held_out(self) -> dict[str, int]:
        return {"held_out": len(self.held), "truncated": sum(self.original.is_truncated(self.held))}

    def to_store(self) -> dict[str, Tensor]:
        return self.replay.to_store(self.accelerator, self.original.context_length)

    def resume(self, stored: dict[str, Tensor]) -> None:
        self.replay.resume(stored, self.accelerator)

    def finish(self) -> None:
        if self.workers is not None:
            self.workers.close()
        self.spelling = merge_table(self.tower)

    def card(self) -> Card:
        return text_card(self.original.name, self.config, self.held_out(), projected=self.original.has_projection)

    def save(self, card: str, output: Path) -> None:
        dtype = getattr(torch, self.config.save_dtype)
        if self.config.lora_rank is None:
            save_encoder(self.tower, self.original.tokenizer, card, output, dtype, self.spelling)
        else:
            save_lora(self.tower, self.config.lora_rank, self.original.name, card, output, dtype)


def text_card(name: str, config: TextFAREConfig, held_out: dict[str, int], *, projected: bool = True) -> Card:
    """The card of an encoder finetuned from `name`; `held_out`: held_out, truncated."""
    leaf = "It was trained on captions under the LEAF attack."
    control = "It is a control: it was trained on captions with random typos, which no attack has chosen."
    kind, what = ("CLIPTextModelWithProjection", "embeddings") if projected else ("CLIPTextModel", "pooled states")
    without = (
        "" if projected else " The original has no projection into the joint space, so its pooled states are learnt."
    )
    return Card(
        title=f"Text encoder finetuned with TextFARE ({config.attack}, k={config.k})",
        tags=("text-encoder",),
        examples="captions",
        introduction=f"A `{kind}`, finetuned from {quoted(name)} with {made_by()} so that its {what} stay close to the "
        "original's of the clean caption when characters are edited "
        f"([arXiv 2506.03355](https://arxiv.org/abs/2506.03355)).{without} "
        + (leaf if config.attack == "leaf" else control),
        protocol=f"{held_out['held_out']} held-out captions ({held_out['truncated']} of them longer than the context and "
        f"cut) against the original's clean {what}; each attack is made anew on the encoder that it measures. "
        f"k = {config.k}. Drift: squared L2 over their mean squared norm.",
        columns={
            "cosine": "Cosine to the original's embedding of the clean caption",
            "drift": "Drift from the original's embedding of the clean caption",
        },
        rows=ROWS,
        strength={"k": config.k},
        use=_ENCODER if config.lora_rank is None else _LORA,
    )


def accuracy_clean(
    encoder: TextEncoder,
    captions: Sequence[str],
    features: Float[Tensor, "n d"],
    targets: Float[Tensor, "n d"],
    at_once: int = 1024,
) -> float:
    """The figure of `held_out_figures`; `features` are the embeddings by `encoder`, which also tokenizes.

    Captions that tokenize alike (duplicates, other capitals, equal up to the context's end) are one and the same.
    """
    rows = [tuple(row) for row in encoder.tokenize(captions)]
    last = {row: i for i, row in enumerate(rows)}
    place = {row: i for i, row in enumerate(last)}
    own = torch.tensor([place[row] for row in rows], device=features.device)
    among = normalize(targets[list(last.values())].float(), dim=-1)
    # the length of a caption's own embedding does not change which target is nearest
    nearest = torch.cat([(part.float() @ among.T).argmax(-1) for part in features.split(at_once)])
    return int((nearest == own).sum()) / len(rows)


def held_out_figures(
    encoder: TextEncoder,
    captions: Sequence[str],
    targets: Float[Tensor, "n d"],
    *,
    k: int,
    constraint: Constraint | None,
    rho: int = 50,
    seed: int = 0,
) -> Figures:
    """Means over captions, against `targets` [n, d], the original's embeddings of the clean captions.

    `drift_*` is the squared L2 distance over the targets' mean squared norm, `cosine_*` the cosine; `*_clean` of the
    captions as they are, `*_typos` with `k` random edits, `*_leaf` under the LEAF attack on `encoder`. `accuracy_clean`
    is top-1 retrieval against the original: the share of captions whose embedding is nearest (cosine) to the original's
    of the same caption among those of all distinct ones; 1.0 before training, and no images are needed.
    """
    attacks: dict[str, Attack] = {"typos": RandomTypos(), "leaf": LeafAttack(rho=rho)}
    given = {"clean": list(captions)}
    for name, attack in attacks.items():
        results = attack(
            captions, Scorer(encoder, AnchorDrift(targets, learnt(encoder))), k=k, constraint=constraint, seed=seed
        )
        given[name] = [result.perturbed for result in results]
    features = {name: embed(encoder, texts) for name, texts in given.items()}
    accuracy = accuracy_clean(encoder, captions, features["clean"], targets)
    return distances(features, targets) | {"accuracy_clean": accuracy}
