"""What a finetuning can be told; the defaults are the papers' recipes for ViT-L/14."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal, Self, get_args, get_origin, get_type_hints

import torch
from transformers import get_scheduler

from leaf_diffusion.attacks import Attack, LeafAttack, RandomTypos

Setting = str | float | None


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe of any finetuning. An update sees `batch_size * accumulation * processes` examples."""

    PAPER_WARMUP: ClassVar[int] = 1400
    help_group: ClassVar[str] = "training"

    batch_size: int = 128
    """Examples (captions, images, pairs) that a process attacks and learns from at once."""
    accumulation: int = 1
    """Batches an update."""
    epochs: float = 30.0
    max_steps: int | None = None
    """Updates; takes the place of epochs."""
    lr: float = 1e-5
    lr_schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """What follows the warm-up: a fall to zero along a cosine or a line, or none (transformers' schedules)."""
    warmup_steps: int | None = None
    """Updates of linear warm-up. Default: the paper's (1,400; 700 where images are attacked), at most a tenth of the
    training."""
    weight_decay: float = 1e-4
    """On matrices; gains, biases and token embeddings are left out."""
    seed: int = 0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    clean_floor: float | None = None
    """The least accuracy_clean (recall_clean of pairs; 0 to 1): training stops at a held-out measurement below it, and
    the encoder is that of the last measurement before."""
    eval_every: int = 500
    """Updates between held-out measurements; before and after training they are always made."""
    checkpoint_every: int = 500
    """Updates between checkpoints."""
    save_dtype: Literal["float32", "float16"] = "float32"
    log_with: Literal["tensorboard", "wandb"] | None = None
    """A tracker that gets the log's rows, beside training_log.jsonl; needs pip install "leaf-diffusion[track]"."""

    def __post_init__(self) -> None:
        self._check_numbers(
            counts=("batch_size", "accumulation", "max_steps", "eval_every", "checkpoint_every"),
            positive=("lr", "epochs"),
            from_zero=("weight_decay", "warmup_steps"),
        )
        if self.clean_floor is not None and not 0 <= self.clean_floor <= 1:
            raise ValueError(f"clean_floor must be a share from 0 to 1, got {self.clean_floor}")
        for name, kind in get_type_hints(type(self)).items():
            known = [
                value for each in (kind, *get_args(kind)) if get_origin(each) is Literal for value in get_args(each)
            ]
            if known and (value := getattr(self, name)) is not None and value not in known:
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")
        if self.max_steps is not None:
            if self.epochs != TrainingConfig.epochs:
                raise ValueError(
                    f"epochs={self.epochs:g} does nothing beside max_steps={self.max_steps}: set that to None"
                )
            self._check_warmup(self.max_steps)

    def _check_numbers(
        self, *, counts: Sequence[str] = (), positive: Sequence[str] = (), from_zero: Sequence[str] = ()
    ) -> None:
        """ValueError for a setting out of its range: `counts` are at least 1, `positive` finite above 0, `from_zero`
        finite and not negative; None is left to its default."""
        for names, what, fits in (
            (counts, "at least 1", lambda value: value >= 1),
            (positive, "a finite number above 0", lambda value: 0 < value < math.inf),
            (from_zero, "a finite number of at least 0", lambda value: 0 <= value < math.inf),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not fits(value):
                    raise ValueError(f"{name} must be {what}, got {value}")

    def _check_warmup(self, steps: int) -> None:
        if self.warmup_steps is not None and self.warmup_steps > steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} does not end within the {steps} steps of this training: "
                "lower it (a tenth of the steps, say), leave it out, or train for longer"
            )

    @property
    def fresh(self) -> int:
        """Examples of a batch that are attacked in its update."""
        return self.batch_size

    def resolved(self, examples: int, processes: int) -> tuple[Self, int]:
        """This recipe with the warm-up of a training on so many examples, and the number of its updates (an epoch
        attacks each example once). ValueError where the warm-up would not end within them."""
        attacked = self.fresh * self.accumulation * processes
        steps = self.max_steps or math.ceil(self.epochs * examples / attacked)
        self._check_warmup(steps)
        warmup = min(self.PAPER_WARMUP, steps // 10) if self.warmup_steps is None else self.warmup_steps
        return replace(self, warmup_steps=warmup), steps

    def rates(self, optimiser: torch.optim.Optimizer, steps: int) -> Callable[[int], float]:
        """The learning rate of each update (from 0), which follows from its number alone.

        transformers' warm-up counts the updates before this one, so that the first would learn nothing; here it counts
        this one too.
        """
        warmup = self.warmup_steps or 0
        (share, *_) = get_scheduler(self.lr_schedule, optimiser, warmup, steps).lr_lambdas
        return lambda step: self.lr * share(step + (step < warmup))

    def identity(self) -> dict[str, Setting]:
        """The settings that make two trainings the same: not how often it is looked at, nor how an update is spread
        over batches and processes."""
        left_out = {"epochs", "max_steps", "checkpoint_every", "log_with", *self._immaterial()}
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def _immaterial(self) -> set[str]:
        """Settings that change nothing beside the others of this recipe."""
        names = {"batch_size", "accumulation"}
        if self.clean_floor is None:  # otherwise a training may end at any measurement
            names.add("eval_every")
        if self.lr_schedule == "cosine":  # recipes from before there was a choice go on
            names.add("lr_schedule")
        return names


@dataclass(frozen=True)
class TextAttackConfig(TrainingConfig):
    """The attack on captions."""

    help_group: ClassVar[str] = "attack on captions"

    rho: int = 50
    """Candidates of each of the LEAF attack's two stages."""
    slots: int | None = None
    """Candidates of its first stage, where other than rho."""
    k: int = 1
    """Character edits a caption."""
    constraint: Literal["no-new-words", "published", "none"] = "no-new-words"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers(counts=("rho", "slots", "k"))


@dataclass(frozen=True)
class TextFAREConfig(TextAttackConfig):
    """The recipe of `finetune_text_encoder`."""

    help_group: ClassVar[str] = "what is learnt"

    attack: Literal["leaf", "random-typos"] = "leaf"
    """What the captions are trained on: the LEAF attack, or (the control) random typos, which nothing has scored."""
    attack_precision: Literal["fp32", "half"] = "fp32"
    """What the attack's candidates are scored in: "half" is bfloat16 (float16 on GPUs without it), much faster where the
    machine multiplies such numbers; what is learnt is computed as `mixed_precision` says."""
    workers: int = 0
    """Processes that make the attack's candidates while the device scores them and learns (Linux): 2 to 4 where a GPU waits
    for them. The encoder is the same with any number."""
    replay: float = 0.0
    """Share of a batch (0 to below 1) whose attacked texts are those of earlier updates, drawn from the last
    `replay_size` of a process: finding an attack costs more than learning from it."""
    replay_size: int = 2048
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
    context. Of an encoder that is no CLIP all are clean."""
    feature: Literal["own", "readout", "mean-state"] = "own"
    """What is drawn back to the original's: of a CLIP "own" is its embedding, of any other encoder the readout of its token
    states (what attention reads from them, `encoders/features.py`)."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers(counts=("states_captions", "replay_size"), from_zero=("states_weight", "workers"))
        if self.workers and self.attack != "leaf":
            raise ValueError(f"workers make the LEAF attack's candidates, {self.attack} has none: workers=0")
        if not 0 <= self.replay < 1:
            raise ValueError(f"replay must be a share of at least 0 and below 1, got {self.replay}")
        if self.replayed > self.replay_size:
            raise ValueError(f"replay_size={self.replay_size} is less than the {self.replayed} that a batch replays")
        if self.spelling and self.lora_rank is not None and not self.lora_token_embedding:
            raise ValueError("spelling trains the token table, which this LoRA leaves alone: lora_token_embedding=True")

    @property
    def replayed(self) -> int:
        """Pairs of a batch that were attacked in an earlier update."""
        return int(self.batch_size * self.replay)

    @property
    def fresh(self) -> int:
        return self.batch_size - self.replayed

    def new_attack(self) -> Attack:
        return LeafAttack(rho=self.rho, slots=self.slots) if self.attack == "leaf" else RandomTypos()

    def _immaterial(self) -> set[str]:
        names = super()._immaterial() | {"workers", "gradient_checkpointing"}
        if self.feature == "own":
            names.add("feature")
        if self.states_weight or self.replay:  # some of each batch, or pairs of each process
            names -= {"batch_size", "accumulation"}
        if not self.replay:
            names |= {"replay", "replay_size"}
        if self.lora_rank is None:
            names.add("lora_token_embedding")
        if self.attack_precision == "fp32":
            names.add("attack_precision")
        return names


@dataclass(frozen=True)
class FAREConfig(TrainingConfig):
    """The recipe of `finetune_image_encoder`."""

    PAPER_WARMUP: ClassVar[int] = 700
    help_group: ClassVar[str] = "attack on images"

    eps: float = 2.0
    """How far a pixel may move, in steps of 1/255."""
    attack_steps: int = 10
    """Steps of PGD on each batch."""
    max_steps: int | None = 10_000
    """Updates; None: as many as `epochs` takes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers(counts=("attack_steps",), positive=("eps",))
        if self.eps > 255:
            raise ValueError(f"eps counts steps of 1/255, so it is at most 255, got {self.eps}")


@dataclass(frozen=True)
class JointConfig(FAREConfig, TextAttackConfig):
    """The recipe of `finetune_both`."""

    help_group: ClassVar[str] = "pairs"

    pair_weight: float = 1.0
    """Weight of the pairs' similarities beside the two relative losses; 0 trains the towers side by side."""
    temperature: float = 0.07
    """Cosines are divided by it before the softmax."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers(positive=("temperature",), from_zero=("pair_weight",))

    def _immaterial(self) -> set[str]:
        # pairs are compared within a batch
        return super()._immaterial() - ({"batch_size", "accumulation"} if self.pair_weight else set())
