"""TextFARE (paper, section 3): a text tower whose embeddings, or token states, survive character edits of the text."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from leaf_diffusion.attacks.base import check_prompts
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.encoders.features import EveryState, SequenceFeature
from leaf_diffusion.encoders.sequence import SequenceTextEncoder
from leaf_diffusion.finetune.anchors import (
    Anchors,
    attack_captions,
    embed,
    learnt,
    sequence_loss,
    states_loss,
    textfare_loss,
)
from leaf_diffusion.finetune.captions import split_captions
from leaf_diffusion.finetune.card import Card, Figures
from leaf_diffusion.finetune.config import TextFAREConfig
from leaf_diffusion.finetune.held_out import held_out_figures
from leaf_diffusion.finetune.loop import HELD_OUT, OnLog, Task, hashed, train
from leaf_diffusion.finetune.lora import add_lora, save_lora
from leaf_diffusion.finetune.replay import Pairs, Replay
from leaf_diffusion.finetune.save import save_encoder
from leaf_diffusion.finetune.sequence import (
    check_like,
    check_sequence,
    freeze_unread,
    linear_names,
    sequence_copy,
    table_name,
)
from leaf_diffusion.finetune.text_card import sequence_card, text_card
from leaf_diffusion.finetune.tower import (
    Features,
    check_encoder,
    check_tokens,
    merge_table,
    token_states,
    trainable_copy,
)
from leaf_diffusion.finetune.workers import AttackWorkers
from leaf_diffusion.text import constraint_from_name

E = TypeVar("E", bound=TextEncoder)


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
    """Finetune a copy of `encoder` (a CLIP text tower, T5, BERT or language model of transformers) and save it in `output`;
    returns that folder.

    Minimises the squared L2 distance between the original's embedding of a caption and the copy's of the attacked one
    (paper, section 3): the projected one, or the pooled state of a tower without a projection. Of an encoder that is no CLIP it
    is the distance of what the token states say (`config.feature`) over the clean one's squared norm. `held_out` captions are
    measured on; default: a tenth of `captions`, 256 at most. `start`: an encoder of the same shape whose weights the
    copy begins with (a further stage); the anchor stays `encoder`. `tokens`: the only ones whose rows of the token
    table are trained (default: all), such as `reachable_tokens` of the captions: the whole table's gradient and moments
    are most of a small tower's. The folder is a Hugging Face one: safetensors, tokenizer, README.md with the figures;
    and training_log.jsonl. With `config.lora_rank` it holds a LoRA instead: a PEFT adapter and the file of diffusers.

    Continues, returns and raises as `train`; ValueError also for captions or an encoder that cannot serve.
    """
    return train(
        text_task(encoder, captions, config, held_out=held_out, start=start, tokens=tokens), Path(output), on_log
    )


def text_task(
    encoder: TextEncoder,
    captions: Sequence[str],
    config: TextFAREConfig | None = None,
    *,
    held_out: Sequence[str] | None = None,
    start: TextEncoder | None = None,
    tokens: Sequence[int] | None = None,
) -> "TextFARE | SequenceFARE":
    """What `finetune_text_encoder` trains. ValueError for captions, an encoder or settings that cannot serve."""
    config, captions = config or TextFAREConfig(), check_prompts(captions)
    if held_out is None:
        captions, held_out = split_captions(captions, at_most=HELD_OUT)
    held_out = check_prompts(held_out)
    if not captions or not held_out:
        raise ValueError(f"{len(captions)} captions to train on and {len(held_out)} held out: there must be some")
    begin = encoder if start is None else start
    if isinstance(encoder, SequenceTextEncoder):
        return SequenceFARE(encoder, check_like(encoder, begin), captions, held_out, config, tokens)
    return TextFARE(check_encoder(encoder), check_encoder(begin), captions, held_out, config, tokens)


class TextTask(Task[Pairs], Generic[E]):
    """Captions under the LEAF attack, drawn back to the original's features of the clean ones."""

    examples = "captions"
    config: TextFAREConfig
    trained: E
    """The encoder around `tower`, from `build` on."""

    def __init__(
        self,
        original: E,
        begin: E,
        captions: Sequence[str],
        held: Sequence[str],
        config: TextFAREConfig,
        tokens: Sequence[int] | None = None,
    ) -> None:
        super().__init__(config, len(captions), original.device)
        self.original, self.begin, self.captions, self.held = original, begin, captions, held
        self.tokens = None if tokens is None else sorted(set(tokens))
        self.constraint, self.feature = constraint_from_name(config.constraint), learnt(original, config.feature)
        self.distance = sequence_loss if isinstance(self.feature, SequenceFeature) else textfare_loss
        if begin is not original and config.lora_rank is not None:
            raise ValueError("a LoRA holds what differs from its base, so it cannot begin at another encoder: no start")

    @abstractmethod
    def make(self) -> Features:
        """`tower` and `trained`, on the accelerator's device, and the module that accelerate wraps."""

    @abstractmethod
    def states(self, captions: Sequence[str], batch: Pairs) -> tuple[list[list[int]], Callable[[Tensor], Tensor]]:
        """Token rows whose states are looked at beside the feature, and how far these are from the original's."""

    def identity(self) -> dict[str, JsonValue]:
        found: dict[str, JsonValue] = {"captions": hashed(self.captions), "held_out": hashed(self.held)}
        found["encoder"] = self.original.fingerprint
        if self.config.feature == "own" and self.feature != "projected":
            found["feature"] = str(self.feature)
        if self.begin is not self.original:
            found["start"] = self.begin.fingerprint
        if self.tokens is not None:
            found["tokens"] = hashlib.sha256(repr(self.tokens).encode()).hexdigest()
        return found

    def build(self, batches: int) -> nn.Module:
        config, module = self.config, self.make()
        if config.gradient_checkpointing:
            self.tower.gradient_checkpointing_enable({"use_reentrant": False})
        self.attacker, self.replay = config.new_attack(), Replay(config.replayed, config.replay_size)
        self.anchors = Anchors(self.original, self.captions_at, batches, self.feature)
        self.workers: AttackWorkers | None = None
        if config.workers:
            self.workers = AttackWorkers(
                config.workers, self.attacker, self.trained, lambda number: (self.captions_at(number), self.seed(number)),
                batches, k=config.k, constraint=self.constraint,
            )  # fmt: skip
        return module

    def captions_at(self, number: int) -> list[str]:
        return [self.captions[i] for i in self.indices(number)]

    def attack(self, number: int, seed: int) -> Pairs:
        clean = self.anchors[number].to(self.accelerator.device)
        with self.accelerator.autocast():
            attacked = attack_captions(
                self.attacker, self.trained, self.captions_at(number), clean, k=self.config.k,
                constraint=self.constraint, seed=seed, feature=self.feature, precision=self.config.attack_precision,
                search=None if self.workers is None else partial(self.workers, number),
            )  # fmt: skip
        fresh = Pairs(self.indices(number), self.trained.tokenize(attacked), clean)
        draw = number * self.accelerator.num_processes + self.accelerator.process_index
        return self.replay.mixed(fresh, (self.config.seed, draw))

    def loss(self, model: nn.Module, batch: Pairs) -> Tensor:
        if not self.config.states_weight:
            return self.distance(model(batch.rows, [])[0], batch.anchors)
        seen, apart = self.states([self.captions[i] for i in batch.captions[: self.config.states_captions]], batch)
        features, states = model(batch.rows, seen)
        return self.distance(features, batch.anchors) + self.config.states_weight * apart(states)

    @cached_property
    def targets(self) -> Tensor:
        """The original's features of the held-out captions."""
        return embed(self.original, self.held, self.feature)

    def measure(self, *, trained: bool) -> Figures:
        encoder = self.trained if trained else self.original
        return held_out_figures(
            encoder, self.held, self.targets, k=self.config.k, constraint=self.constraint, feature=self.feature
        )

    def held_out(self) -> dict[str, int]:
        return {"held_out": len(self.held), "truncated": sum(self.original.is_truncated(self.held))}

    def to_store(self) -> dict[str, Tensor]:
        return self.replay.to_store(self.accelerator)

    def resume(self, stored: dict[str, Tensor]) -> None:
        self.replay.resume(stored, self.accelerator)

    def close(self) -> None:
        if self.workers is not None:
            self.workers.close()


class TextFARE(TextTask[HFTextEncoder]):
    """The text tower of a CLIP."""

    def __init__(self, original: HFTextEncoder, begin: HFTextEncoder, *given: Any) -> None:
        super().__init__(original, begin, *given)
        if begin.has_projection != original.has_projection:
            raise ValueError(
                f"one of {original.name} and {begin.name} has no projection: both are to have one, or none"
            )
        if self.tokens is not None:
            check_tokens(original, self.tokens, self.config)
        if self.feature == "pooled":
            self.remark = f"{original.name} has no text projection: its pooled states are learnt, not embeddings"

    def make(self) -> Features:
        config, self.spelling = self.config, None
        spelling = config.spelling and config.lora_rank is None
        self.tower = trainable_copy(self.begin, spelling=spelling, tokens=self.tokens)
        if config.lora_rank is not None:
            spelling_of = self.original.tokenizer if config.spelling else None
            table = config.lora_token_embedding
            add_lora(self.tower, config.lora_rank, config.seed, token_embedding=table, spelling_of=spelling_of)
        self.tower = self.tower.to(self.accelerator.device)
        self.trained = HFTextEncoder(self.tower, self.original.tokenizer, name="trained")
        return Features(self.trained, self.feature)

    def states(self, captions: Sequence[str], batch: Pairs) -> tuple[list[list[int]], Callable[[Tensor], Tensor]]:
        seen, begins, anchor = token_states(self.original, captions, batch.rows)
        return seen, lambda states: states_loss(states.view_as(anchor), anchor.to(states.device), begins)

    def finish(self) -> None:
        self.spelling = merge_table(self.tower)

    def card(self) -> Card:
        return text_card(self.original.name, self.config, self.held_out(), projected=self.original.has_projection)

    def save(self, card: str, output: Path) -> None:
        dtype = getattr(torch, self.config.save_dtype)
        if self.config.lora_rank is None:
            save_encoder(self.tower, self.original.tokenizer, card, output, dtype, self.spelling)
        else:
            save_lora(self.tower, self.config.lora_rank, self.original.name, card, output, dtype)


class SequenceFARE(TextTask[SequenceTextEncoder]):
    """A text encoder whose token states are read: T5, BERT, a language model. Its whole model is saved, in its own class."""

    def __init__(self, original: SequenceTextEncoder, begin: SequenceTextEncoder, *given: Any) -> None:
        super().__init__(original, begin, *given)
        check_sequence(original, self.config, self.tokens)

    def make(self) -> Features:
        rank, begin = self.config.lora_rank, self.begin
        self.tower = sequence_copy(begin, share=rank is not None)
        self.targets_of_lora = linear_names(begin)
        if rank is not None:
            table = table_name(begin) if self.config.lora_token_embedding else False
            add_lora(self.tower, rank, self.config.seed, targets=self.targets_of_lora, token_embedding=table)
        self.tower = self.tower.to(self.accelerator.device)
        self.trained = type(begin)(self.tower, begin.tokenizer, reading=begin.reading, name="trained")
        freeze_unread(self.trained)
        return Features(self.trained, self.feature, EveryState())

    def states(self, captions: Sequence[str], batch: Pairs) -> tuple[list[list[int]], Callable[[Tensor], Tensor]]:
        rows = self.original.tokenize(captions)
        with torch.no_grad():
            anchor = self.original.features(rows, EveryState()).to(self.accelerator.device)
        return rows, lambda states: sequence_loss(states, anchor)

    def card(self) -> Card:
        kind, family = type(self.original.module).__name__, str(self.original.config.model_type)
        return sequence_card(self.original.name, self.config, self.held_out(), kind, family, str(self.feature))

    def save(self, card: str, output: Path) -> None:
        dtype, reading = getattr(torch, self.config.save_dtype), self.original.reading
        if self.config.lora_rank is None:
            save_encoder(self.tower, self.original.tokenizer, card, output, dtype, reading=reading)
        else:
            save_lora(
                self.tower, self.config.lora_rank, self.original.name, card, output, dtype,
                targets=self.targets_of_lora, reading=reading,
            )  # fmt: skip
