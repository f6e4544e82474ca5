"""TextFARE finetuning: one loop, from top to bottom.

Several processes, each of which attacks its own share of an update, give the same encoder:
`accelerate launch -m leaf_diffusion.cli.finetune --source ...`, or the same with `torchrun --nproc-per-node N`.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any, cast

import torch
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from leaf_diffusion.attacks.base import check_prompts
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.finetune.captions import batch_indices, split_captions
from leaf_diffusion.finetune.card import model_card
from leaf_diffusion.finetune.checkpoint import Checkpoint, append_log, cut_log, read_state, write_state
from leaf_diffusion.finetune.config import TextFAREConfig as TextFAREConfig
from leaf_diffusion.finetune.config import rate as rate
from leaf_diffusion.finetune.floor import CleanFloor
from leaf_diffusion.finetune.lora import add_lora, save_lora
from leaf_diffusion.finetune.processes import accelerator_for
from leaf_diffusion.finetune.replay import Pairs, Replay
from leaf_diffusion.finetune.save import save_encoder
from leaf_diffusion.finetune.textfare import (
    Anchors,
    Figures,
    attack_captions,
    embed,
    held_out_figures,
    states_loss,
    textfare_loss,
)
from leaf_diffusion.finetune.tower import (
    Features,
    check_encoder,
    check_tokens,
    merge_table,
    new_optimiser,
    token_states,
    trainable_copy,
)
from leaf_diffusion.text import constraint_from_name

LOG_EVERY = 10
HELD_OUT = 256
_COLUMNS = (
    TextColumn("finetuning, loss {task.fields[loss]}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
)


def finetune_text_encoder(
    encoder: TextEncoder,
    captions: Sequence[str],
    output: Path | str,
    config: TextFAREConfig | None = None,
    *,
    held_out: Sequence[str] | None = None,
    start: TextEncoder | None = None,
    tokens: Sequence[int] | None = None,
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Finetune a copy of `encoder` (a transformers CLIP text tower) and save it in `output`; returns that folder.

    Minimises the squared L2 distance between the original's embedding of a caption and the copy's of the attacked one
    (paper, section 3). `held_out` captions are measured on; default: a tenth of `captions`, 256 at most. `start`: an encoder
    of the same shape whose weights the copy begins with (a further stage); the anchor stays `encoder`. `tokens`: the only
    ones whose rows of the token table are trained (default: all), such as `reachable_tokens` of the captions: the whole
    table's gradient and moments are most of a small tower's. `on_log` gets each row of the log. The folder is a Hugging
    Face one: safetensors, tokenizer, README.md with the figures; and training_log.jsonl. With `config.lora_rank` it holds a
    LoRA instead: a PEFT adapter and the file of diffusers. The same call continues where it was broken off, and returns at
    once when it had finished.

    Raises ValueError for captions, an encoder or a folder that cannot serve, before the training starts, and where the
    loss is no finite number any more.
    """
    output, config = Path(output), config or TextFAREConfig()
    original = check_encoder(encoder)
    captions = check_prompts(captions)
    if held_out is None:
        captions, held_out = split_captions(captions, at_most=HELD_OUT)
    held_out = check_prompts(held_out)
    if not captions or not held_out:
        raise ValueError(f"{len(captions)} captions to train on and {len(held_out)} held out: there must be some")
    # gradients, whatever the caller has switched off
    with torch.inference_mode(False), torch.enable_grad(), accelerator_for(config, original.device) as accelerator:
        begin = original if start is None else check_encoder(start)
        return _train(accelerator, original, begin, captions, held_out, output, config, tokens, on_log)


def _train(
    accelerator: Accelerator,
    original: HFTextEncoder,
    begin: HFTextEncoder,
    captions: Sequence[str],
    held_out: Sequence[str],
    output: Path,
    config: TextFAREConfig,
    tokens: Sequence[int] | None,
    on_log: Callable[[dict[str, Any]], None] | None,
) -> Path:
    constraint = constraint_from_name(config.constraint)
    rank, processes, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    steps, per_update = config.steps(len(captions), processes), config.batch_size * config.accumulation * processes
    identity = _identity(original, captions, held_out, config, steps, per_update)
    if begin is not original:
        if config.lora_rank is not None:
            raise ValueError(
                "a LoRA holds what differs from its base, so it cannot begin at another encoder: leave start out"
            )
        identity["start"] = begin.fingerprint
    if tokens is not None:
        tokens = sorted(set(tokens))
        check_tokens(original, tokens, config)
        identity["tokens"] = hashlib.sha256(repr(tokens).encode()).hexdigest()
    state = read_state(output, identity)
    if state is not None and state["finished"]:
        return output

    tower = trainable_copy(begin, spelling=config.spelling and config.lora_rank is None, tokens=tokens)
    if config.lora_rank is not None:
        spelling_of = original.tokenizer if config.spelling else None
        table = config.lora_token_embedding
        add_lora(tower, config.lora_rank, config.seed, token_embedding=table, spelling_of=spelling_of)
    tower = tower.to(accelerator.device)
    trained = HFTextEncoder(tower, original.tokenizer, name="trained")
    model, optimiser = accelerator.prepare(
        Features(trained), new_optimiser(tower, lr=config.lr, weight_decay=config.weight_decay)
    )
    checkpoint = Checkpoint(output, tower, optimiser.optimizer)
    floor = CleanFloor(config.clean_floor, tower)
    replay, fresh = Replay(config.replayed, config.replay_size), config.batch_size - config.replayed
    step, numbers, kept = checkpoint.load()
    replay.resume(kept, accelerator)
    floor.resume(numbers, kept)
    if accelerator.scaler is not None and "scaler" in numbers:
        accelerator.scaler.load_state_dict(numbers["scaler"])
    accelerator.wait_for_everyone()  # everybody has read the folder: now it may be written to

    def measure(encoder: TextEncoder) -> Figures:
        return held_out_figures(encoder, held_out, targets, k=config.k, constraint=constraint)

    def log(row: dict[str, Any]) -> None:
        append_log(output, row)
        if "drift_leaf" in row:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
            progress.console.print(f"step {row['step']}: {figures}", highlight=False)
        if on_log is not None:
            on_log(row)

    def batch_at(part: int) -> list[int]:
        return batch_indices(len(captions), (part * processes + rank) * fresh, fresh, config.seed)

    def captions_at(part: int) -> list[str]:
        return [captions[i] for i in batch_at(part)]

    attack, anchors = config.new_attack(), Anchors(original, captions_at, steps * config.accumulation)
    with Progress(*_COLUMNS, disable=not main) as progress:
        bar = progress.add_task("", total=steps, completed=step, loss="-")
        before: Figures = {}
        if main:
            output.mkdir(parents=True, exist_ok=True)
            targets = embed(original, held_out)
            before = state["before"] if state is not None else measure(original)
            write_state(output, identity, finished=False, before=before)
            cut_log(output, step)
            if step == 0:
                log({"step": 0} | before)
        while step < steps and not floor.stopped:
            started, losses = monotonic(), []
            seed = config.seed * 1_000_003 + step
            torch.manual_seed(seed * processes + rank)  # for towers with dropout
            for group in optimiser.param_groups:
                group["lr"] = config.lr * rate(step, steps, config.warmup_steps)
            for part in range(config.accumulation):
                number = step * config.accumulation + part
                indices, batch, clean = batch_at(number), captions_at(number), anchors[number].to(accelerator.device)
                tower.eval()
                with accelerator.autocast():
                    attacked = attack_captions(
                        attack, trained, batch, clean, k=config.k, constraint=constraint, seed=seed,
                        precision=config.attack_precision,
                    )  # fmt: skip
                tower.train()
                pairs = replay.mixed(
                    Pairs(indices, trained.tokenize(attacked), clean), (config.seed, number * processes + rank)
                )
                with accelerator.accumulate(model):
                    if config.states_weight:
                        batch = [captions[i] for i in pairs.captions]
                        seen, begins, anchor = token_states(original, batch, pairs.rows, config.states_captions)
                        features, states = model(pairs.rows, seen)
                        both = states.view_as(anchor), anchor.to(accelerator.device)
                        loss = textfare_loss(features, pairs.anchors) + config.states_weight * states_loss(
                            *both, begins
                        )
                    else:
                        loss = textfare_loss(model(pairs.rows, [])[0], pairs.anchors)
                    accelerator.backward(loss)
                    optimiser.step()
                    optimiser.zero_grad()
                losses.append(loss.detach())
            mean = float(cast(Tensor, accelerator.reduce(torch.stack(losses).mean(), "mean")))
            if not math.isfinite(mean):
                raise ValueError(f"step {step + 1}: the loss is {mean}; lower lr={config.lr:g}, or train in float32")
            step += 1
            progress.update(bar, completed=step, loss=f"{mean:.4f}")
            measured = step % config.eval_every == 0 or step == steps
            if main:
                row = {"step": step, "loss": mean, "lr": optimiser.param_groups[0]["lr"]}
                row["captions_per_second"] = round(per_update / (monotonic() - started), 2)
                if measured:
                    tower.eval()
                    row |= measure(trained)
                    floor.measured(step, row["accuracy_clean"])
                    row |= floor.stop
                if step % LOG_EVERY == 0 or "drift_leaf" in row:
                    log(row)
            if measured:
                floor.agree(accelerator)
            if step % config.checkpoint_every == 0 or step == steps or floor.stopped:
                pairs_kept = replay.to_store(accelerator, original.context_length)
                if main:
                    numbers, kept = floor.to_store()
                    if accelerator.scaler is not None:
                        numbers["scaler"] = accelerator.scaler.state_dict()
                    checkpoint.save(step, numbers, kept | pairs_kept)

        if main:
            if floor.stopped:
                progress.console.print(str(floor), highlight=False)
            floor.restore()
            tower.eval()
            spelling = merge_table(tower)
            after = measure(trained)
            counts = {"steps": floor.kept_step if floor.stopped else steps, "per_update": per_update}
            counts |= {"captions": len(captions), "held_out": len(held_out)}
            counts["truncated"] = sum(original.is_truncated(held_out))
            card = model_card(original.name, config, before, after, counts, str(floor))
            dtype = getattr(torch, config.save_dtype)
            if config.lora_rank is None:
                save_encoder(tower, original.tokenizer, card, output, dtype, spelling)
            else:
                save_lora(tower, config.lora_rank, original.name, card, output, dtype)
            stop = {"stopped": floor.stop} if floor.stopped else {}
            write_state(output, identity, finished=True, before=before, after=after, counts=counts, **stop)
            checkpoint.remove()
    accelerator.wait_for_everyone()
    return output


def _identity(
    encoder: HFTextEncoder,
    captions: Sequence[str],
    held_out: Sequence[str],
    config: TextFAREConfig,
    steps: int,
    per_update: int,
) -> dict[str, Any]:
    """What makes two trainings the same; how an update is spread over batches and processes does not belong to it,
    unless token states are looked at, some of each batch, or pairs are replayed, of each process its own."""
    settings = asdict(config)
    for name in ("epochs", "max_steps", "checkpoint_every"):
        del settings[name]
    if config.clean_floor is None:  # otherwise a training may end at any measurement
        del settings["eval_every"]
    if not config.states_weight and not config.replay:
        del settings["batch_size"], settings["accumulation"]
    if not config.replay:
        del settings["replay"], settings["replay_size"]
    if config.lora_rank is None:
        del settings["lora_token_embedding"]
    if config.attack_precision == "fp32":
        del settings["attack_precision"]
    texts = {"captions": captions, "held_out": held_out}
    hashes = {name: hashlib.sha256("\n".join(value).encode()).hexdigest() for name, value in texts.items()}
    return settings | hashes | {"encoder": encoder.fingerprint, "steps": steps, "per_update": per_update}
