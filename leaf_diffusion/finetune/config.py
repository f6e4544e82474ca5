"""What a TextFARE finetuning can be told; the defaults are the paper's recipe for ViT-L/14."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from leaf_diffusion.attacks import Attack, LeafAttack, RandomTypos

_CHOICES = {
    "attack": ("leaf", "random-typos"),
    "constraint": ("no-new-words", "published", "none"),
    "mixed_precision": ("no", "fp16", "bf16"),
    "attack_precision": ("fp32", "half"),
    "save_dtype": ("float32", "float16"),
}


@dataclass(frozen=True)
class TextFAREConfig:
    """The recipe. An update sees `batch_size * accumulation * processes` captions."""

    attack: Literal["leaf", "random-typos"] = "leaf"
    """What the captions are trained on: the LEAF attack, or (the control) random typos, which nothing has scored."""
    rho: int = 50
    """Candidates of each of the LEAF attack's two stages."""
    slots: int | None = None
    """Candidates of its first stage, where other than rho."""
    k: int = 1
    """Character edits a caption."""
    constraint: Literal["no-new-words", "published", "none"] = "no-new-words"
    batch_size: int = 128
    """Captions that a process attacks and learns from at once."""
    replay: float = 0.0
    """Share of a batch (0 to below 1) whose attacked texts are those of earlier updates, drawn from the last
    `replay_size` of a process: finding an attack costs more than learning from it."""
    replay_size: int = 2048
    accumulation: int = 1
    """Batches an update."""
    epochs: float = 30.0
    max_steps: int | None = None
    """Updates; takes the place of epochs."""
    lr: float = 1e-5
    weight_decay: float = 1e-4
    """On matrices; gains, biases and token embeddings are left out."""
    warmup_steps: int = 1400
    """Updates of linear warm-up; a cosine to zero follows."""
    seed: int = 0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    attack_precision: Literal["fp32", "half"] = "fp32"
    """What the attack's candidates are scored in: "half" is bfloat16 (float16 on GPUs without it), much faster where the
    machine multiplies such numbers; what is learnt is computed as `mixed_precision` says."""
    eval_every: int = 500
    """Updates between held-out measurements; before and after training they are always made."""
    checkpoint_every: int = 500
    """Updates between checkpoints."""
    clean_floor: float | None = None
    """The least accuracy_clean (0 to 1): training stops at a held-out measurement below it, and the encoder is that of
    the last measurement before."""
    lora_rank: int | None = None
    """Train a LoRA of this rank on the blocks' linear layers, a file of a few MB, instead of all weights."""
    lora_token_embedding: bool = True
    """Whether the LoRA covers the token table too (2 or 4 bytes x rank x vocabulary): typos are made of rare tokens."""
    spelling: bool = False
    """Whether the token table learns from the spelling of its tokens (`spelling.py`): a small tower, or one that has
    met few misspellings, learns much faster."""
    states_weight: float = 0.0
    """Weight of the token states in the loss (`states_loss`), beside the pooled embedding, which is all that TextFARE
    looks at: above 0, a Stable Diffusion that is conditioned on token states keeps its clean images."""
    states_captions: int = 16
    """Captions of a batch, half of them clean, whose token states are looked at; these are padded to the full
    context."""
    save_dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        counts = ("rho", "slots", "k", "batch_size", "accumulation", "max_steps", "eval_every", "checkpoint_every")
        check_numbers(
            self,
            counts=(*counts, "states_captions", "replay_size"),
            positive=("lr", "epochs"),
            from_zero=("weight_decay", "warmup_steps", "states_weight"),
        )
        if self.clean_floor is not None and not 0 <= self.clean_floor <= 1:
            raise ValueError(f"clean_floor must be a share from 0 to 1, got {self.clean_floor}")
        if not 0 <= self.replay < 1:
            raise ValueError(f"replay must be a share of at least 0 and below 1, got {self.replay}")
        if self.replayed > self.replay_size:
            raise ValueError(f"replay_size={self.replay_size} is less than the {self.replayed} that a batch replays")
        if self.spelling and self.lora_rank is not None and not self.lora_token_embedding:
            raise ValueError("spelling trains the token table, which this LoRA leaves alone: lora_token_embedding=True")
        check_choices(self, _CHOICES)

    @property
    def replayed(self) -> int:
        """Pairs of a batch that were attacked in an earlier update."""
        return int(self.batch_size * self.replay)

    def steps(self, captions: int, processes: int) -> int:
        """Updates in all (an epoch attacks each caption once); ValueError where the warm-up would not end within them."""
        attacked = (self.batch_size - self.replayed) * self.accumulation * processes
        steps = self.max_steps or math.ceil(self.epochs * captions / attacked)
        check_warmup(self.warmup_steps, steps)
        return steps

    def new_attack(self) -> Attack:
        return LeafAttack(rho=self.rho, slots=self.slots) if self.attack == "leaf" else RandomTypos()


def rate(step: int, steps: int, warmup_steps: int) -> float:
    """The share of the learning rate at update `step` (from 0): linear warm-up, then a cosine to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))


def check_numbers(recipe: object, *, counts: Sequence[str], positive: Sequence[str], from_zero: Sequence[str]) -> None:
    """ValueError for a setting that is out of its range: `counts` are at least 1 (or None), `positive` finite above 0,
    `from_zero` finite and not negative."""
    for name in counts:
        value = getattr(recipe, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name in positive:
        if not 0 < getattr(recipe, name) < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {getattr(recipe, name)}")
    for name in from_zero:
        if not 0 <= getattr(recipe, name) < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {getattr(recipe, name)}")


def check_choices(recipe: object, choices: Mapping[str, Sequence[str]]) -> None:
    """ValueError for a setting that is none of its values."""
    for name, known in choices.items():
        if getattr(recipe, name) not in known:
            raise ValueError(f"unknown {name} {getattr(recipe, name)!r}; choose one of {', '.join(known)}")


def check_warmup(warmup_steps: int, steps: int) -> None:
    """ValueError where the warm-up would not end within the training."""
    if warmup_steps > steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} does not end within the {steps} steps of this training: "
            "lower it (a tenth of the steps, say) or train for longer"
        )
