"""FARE: an image tower whose features withstand small changes of pixels, the partner of a LEAF text tower.

Schlarmann et al. 2024, "Robust CLIP" (paper, section 3): || f_original(x) - f_theta(z) ||^2 over z within eps of x
in l-inf, found by PGD; no labels and no texts. One loop, from top to bottom; several processes share an update, as for
text towers.
"""

import copy
import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any, cast

import torch
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize
from transformers import CLIPVisionModelWithProjection

from leaf_diffusion.attacks.images import APGD, PGD, FeatureDrift, project
from leaf_diffusion.encoders.image_encoder import ImageEncoder
from leaf_diffusion.finetune.captions import batch_indices
from leaf_diffusion.finetune.checkpoint import Checkpoint, append_log, cut_log, read_state, write_state
from leaf_diffusion.finetune.config import rate
from leaf_diffusion.finetune.fare_config import FAREConfig as FAREConfig
from leaf_diffusion.finetune.fare_config import image_card
from leaf_diffusion.finetune.images import Images, load_some, split_images
from leaf_diffusion.finetune.processes import accelerator_for
from leaf_diffusion.finetune.save import save_encoder
from leaf_diffusion.finetune.textfare import Figures, textfare_loss
from leaf_diffusion.finetune.tower import new_optimiser

LOG_EVERY = 10
_COLUMNS = (
    TextColumn("finetuning, loss {task.fields[loss]}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
)


class _Features(nn.Module):  # type: ignore[misc]  # strict mode without torch's types
    """Pixels 0 to 1 to features: the one module that accelerate wraps."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.tower, self._features = encoder.module, encoder.features

    def forward(self, pixels: Tensor) -> Tensor:
        return self._features(pixels)


def finetune_image_encoder(
    encoder: ImageEncoder,
    images: Images,
    output: Path | str,
    config: FAREConfig | None = None,
    *,
    held_out: Images | None = None,
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Finetune a copy of `encoder` (transformers') by FARE and save it in `output`; returns that folder.

    `held_out` images are measured on; default: a tenth of `images`, 256 at most. The folder is a Hugging Face one:
    safetensors, preprocessor_config.json, README.md with the figures; and training_log.jsonl. The same call continues
    where it was broken off, and returns at once when it had finished. Images that cannot be read are left out.

    Raises ValueError for images, an encoder or a folder that cannot serve, before the training starts, and where the
    loss is no finite number any more.
    """
    output, config = Path(output), config or FAREConfig()
    if not isinstance(encoder.module, CLIPVisionModelWithProjection):
        raise ValueError(
            f"{encoder.name} is no CLIPVisionModelWithProjection of transformers, which the finetuning needs: "
            "load the model's transformers version by load_image_encoder"
        )
    if held_out is None:
        images, held_out = split_images(images)
    with torch.inference_mode(False), torch.enable_grad(), accelerator_for(config, encoder.device) as accelerator:
        return _train(accelerator, encoder, images, held_out, output, config, on_log)


def _train(
    accelerator: Accelerator,
    original: ImageEncoder,
    images: Images,
    held_out: Images,
    output: Path,
    config: FAREConfig,
    on_log: Callable[[dict[str, Any]], None] | None,
) -> Path:
    rank, processes, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    per_update = config.batch_size * config.accumulation * processes
    identity = _identity(original, images, held_out, config, per_update)
    state = read_state(output, identity)
    if state is not None and state["finished"]:
        return output

    tower = copy.deepcopy(original.module).float().requires_grad_().to(accelerator.device)
    trained = ImageEncoder(tower, original.preprocessing, name="trained")
    model, optimiser = accelerator.prepare(
        _Features(trained), new_optimiser(tower, lr=config.lr, weight_decay=config.weight_decay)
    )
    checkpoint = Checkpoint(output, tower, optimiser.optimizer)
    step, numbers, _ = checkpoint.load()
    if accelerator.scaler is not None and "scaler" in numbers:
        accelerator.scaler.load_state_dict(numbers["scaler"])
    accelerator.wait_for_everyone()  # everybody has read the folder: now it may be written to

    def log(row: dict[str, Any]) -> None:
        append_log(output, row)
        if "drift_apgd" in row:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
            progress.console.print(f"step {row['step']}: {figures}", highlight=False)
        if on_log is not None:
            on_log(row)

    steps, unreadable = config.max_steps, 0
    attack = PGD(eps=config.eps / 255, steps=config.attack_steps)
    with ThreadPoolExecutor(8) as threads, Progress(*_COLUMNS, disable=not main) as progress:
        bar = progress.add_task("", total=steps, completed=step, loss="-")
        before: Figures = {}
        if main:
            pixels = original.prepare(load_some(held_out, range(len(held_out.names)), threads))
            targets = original.embed(pixels, config.batch_size)
            output.mkdir(parents=True, exist_ok=True)
            before = state["before"] if state is not None else image_figures(original, pixels, targets, config)
            write_state(output, identity, finished=False, before=before)
            cut_log(output, step)
            if step == 0:
                log({"step": 0} | before)
        while step < steps:
            started, losses = monotonic(), []
            seed = config.seed * 1_000_003 + step
            torch.manual_seed(seed * processes + rank)  # for towers with dropout
            for group in optimiser.param_groups:
                group["lr"] = config.lr * rate(step, steps, config.warmup_steps)
            for part in range(config.accumulation):
                first = ((step * config.accumulation + part) * processes + rank) * config.batch_size
                numbers_of = batch_indices(len(images.names), first, config.batch_size, config.seed)
                batch = load_some(images, numbers_of, threads)
                unreadable += config.batch_size - len(batch)
                clean = original.prepare(batch).to(accelerator.device)
                anchors = original.embed(clean).to(accelerator.device)
                tower.eval()
                with accelerator.autocast():
                    attacked = attack.search(clean, FeatureDrift(trained.features, anchors), seed).pixels
                tower.train()
                with accelerator.accumulate(model):
                    loss = textfare_loss(model(attacked), anchors)
                    accelerator.backward(loss)
                    optimiser.step()
                    optimiser.zero_grad()
                losses.append(loss.detach())
            mean = float(cast(Tensor, accelerator.reduce(torch.stack(losses).mean(), "mean")))
            if not math.isfinite(mean):
                raise ValueError(f"step {step + 1}: the loss is {mean}; lower lr={config.lr:g}, or train in float32")
            step += 1
            progress.update(bar, completed=step, loss=f"{mean:.4f}")
            if main:
                row: dict[str, Any] = {"step": step, "loss": mean, "lr": optimiser.param_groups[0]["lr"]}
                row["images_per_second"] = round(per_update / (monotonic() - started), 2)
                if step % config.eval_every == 0 or step == steps:
                    tower.eval()
                    row |= image_figures(trained, pixels, targets, config)
                if step % LOG_EVERY == 0 or "drift_apgd" in row:
                    log(row | ({"unreadable": unreadable} if unreadable else {}))
                if step % config.checkpoint_every == 0 or step == steps:
                    scaler = {} if accelerator.scaler is None else {"scaler": accelerator.scaler.state_dict()}
                    checkpoint.save(step, scaler, {})

        if main:
            tower.eval()
            after = image_figures(trained, pixels, targets, config)
            counts = {"steps": steps, "per_update": per_update, "images": len(images.names)}
            counts["held_out"] = len(pixels)
            card = image_card(original.name, config, before, after, counts)
            save_encoder(tower, original.processor, card, output, getattr(torch, config.save_dtype))
            write_state(output, identity, finished=True, before=before, after=after, counts=counts)
            checkpoint.remove()
    accelerator.wait_for_everyone()
    return output


def image_figures(encoder: ImageEncoder, pixels: Tensor, targets: Tensor, config: FAREConfig) -> Figures:
    """Means over images, against `targets` [n, d], the original's features of the clean ones.

    `drift_*` is the squared L2 distance over the targets' mean squared norm, `cosine_*` the cosine; `*_clean` of the
    images as they are, `*_noise` with random noise of size eps, `*_apgd` under APGD of twice the training's steps on
    `encoder`. `accuracy_clean`: the share of images whose features are nearest (cosine) to the original's of the same
    image among all of them.
    """
    eps, parts = config.eps / 255, range(0, len(pixels), config.batch_size)
    signs = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
    attack, attacked = APGD(eps=eps, steps=2 * config.attack_steps), []
    for i in parts:
        part = slice(i, i + config.batch_size)
        clean = pixels[part].to(encoder.device)
        attacked.append(attack(clean, FeatureDrift(encoder.features, targets[part])).pixels.cpu())
    given = {"clean": pixels, "noise": project(pixels + eps * signs, pixels, eps), "apgd": torch.cat(attacked)}
    unit = float(targets.square().sum(-1).mean())
    figures: Figures = {}
    for name, shown in given.items():
        features = encoder.embed(shown, config.batch_size)
        figures[f"drift_{name}"] = float(textfare_loss(features, targets)) / unit
        figures[f"cosine_{name}"] = float(cosine_similarity(features, targets).mean())
        if name == "clean":
            nearest = (normalize(features, dim=-1) @ normalize(targets, dim=-1).T).argmax(1).cpu()
            figures["accuracy_clean"] = float((nearest == torch.arange(len(nearest))).float().mean())
    return figures


def _identity(
    encoder: ImageEncoder, images: Images, held_out: Images, config: FAREConfig, per_update: int
) -> dict[str, Any]:
    """What makes two trainings the same; how an update is spread over batches and processes does not belong to it."""
    settings = asdict(config)
    for name in ("checkpoint_every", "eval_every", "batch_size", "accumulation"):
        del settings[name]
    names = {"images": images, "held_out": held_out}
    hashes = {
        key: hashlib.sha256("\n".join(value.names).encode(errors="surrogateescape")).hexdigest()
        for key, value in names.items()
    }
    return settings | hashes | {"encoder": encoder.fingerprint, "per_update": per_update}
