"""Both towers finetuned together: TextFARE and FARE in one loss, and what only the pair can lose.

The paper finetunes its encoders apart and names that as a limit. Here each batch is captions with their images: both are
attacked (LEAF on the text tower, PGD on the image tower, each against its own frozen original), both features are
drawn back, and the similarities of attacked captions with attacked images are held to the originals' of the clean pairs.
"""

import copy
import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, normalize
from transformers import CLIPVisionModelWithProjection

from leaf_diffusion.attacks import LeafAttack
from leaf_diffusion.attacks.images import PGD, FeatureDrift
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.encoders.image_encoder import ImageEncoder
from leaf_diffusion.finetune.captions import batch_indices
from leaf_diffusion.finetune.checkpoint import Checkpoint, append_log, cut_log, read_state, write_state
from leaf_diffusion.finetune.config import rate
from leaf_diffusion.finetune.images import Pairs, load_pairs
from leaf_diffusion.finetune.joint_config import JointConfig as JointConfig
from leaf_diffusion.finetune.joint_config import joint_card
from leaf_diffusion.finetune.save import save_encoder
from leaf_diffusion.finetune.textfare import Figures, attack_captions, bucketed, embed, textfare_loss
from leaf_diffusion.finetune.tower import check_encoder, new_optimiser, trainable_copy
from leaf_diffusion.text import constraint_from_name

LOG_EVERY, HELD_OUT_RHO = 10, 50
_COLUMNS = (
    TextColumn("finetuning both, loss {task.fields[loss]}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
)


def pair_loss(
    texts: Float[Tensor, "n d"],
    images: Float[Tensor, "n d"],
    clean_texts: Float[Tensor, "n d"],
    clean_images: Float[Tensor, "n d"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Mean Kullback-Leibler divergence, both ways of reading the batch, of softmaxed cosines from the originals'."""

    def logits(a: Tensor, b: Tensor) -> Tensor:
        return normalize(a.float(), dim=-1) @ normalize(b.float(), dim=-1).T / temperature

    found, wanted = logits(texts, images), logits(clean_texts, clean_images)
    both = ((found, wanted), (found.T, wanted.T))
    parts = [kl_div(log_softmax(f, -1), log_softmax(w, -1), reduction="batchmean", log_target=True) for f, w in both]
    return (parts[0] + parts[1]) / 2


def finetune_both(
    text: TextEncoder,
    image: ImageEncoder,
    pairs: Pairs,
    output: Path | str,
    config: JointConfig | None = None,
    *,
    held_out: Pairs,
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Finetune copies of both towers of one CLIP; returns `output`, which holds the folders `text` and `image`.

    One process, on the device of the towers, which have to share it. The same call continues where it was broken off
    and returns at once when it had finished. Raises ValueError for towers, pairs or a folder that cannot serve.
    """
    output, config, original = Path(output), config or JointConfig(), check_encoder(text)
    if not isinstance(image.module, CLIPVisionModelWithProjection):
        raise ValueError(
            f"{image.name} is no CLIPVisionModelWithProjection of transformers, which the finetuning needs"
        )
    if image.device != original.device:
        raise ValueError(f"the text tower is on {original.device}, the image tower on {image.device}: load both on one")
    identity = _identity(original, image, pairs, held_out, config)
    state = read_state(output, identity)
    if state is not None and state["finished"]:
        return output
    with torch.inference_mode(False), torch.enable_grad():
        _train(original, image, pairs, held_out, output, config, identity, state, on_log)
    return output


def _train(
    original: HFTextEncoder,
    image: ImageEncoder,
    pairs: Pairs,
    held_out: Pairs,
    output: Path,
    config: JointConfig,
    identity: dict[str, Any],
    state: dict[str, Any] | None,
    on_log: Callable[[dict[str, Any]], None] | None,
) -> None:
    device = original.device
    towers = nn.ModuleDict(
        {"text": trainable_copy(original).to(device), "image": copy.deepcopy(image.module).float().requires_grad_()}
    )
    texts = HFTextEncoder(towers["text"], original.tokenizer, name="trained")
    images = ImageEncoder(towers["image"], image.preprocessing, name="trained")
    optimiser = new_optimiser(towers, lr=config.lr, weight_decay=config.weight_decay)
    checkpoint = Checkpoint(output, towers, optimiser)
    step, _, _ = checkpoint.load()
    leaf, pgd = LeafAttack(rho=config.rho, slots=config.slots), PGD(eps=config.eps / 255, steps=config.attack_steps)
    constraint = constraint_from_name(config.constraint)

    def log(row: dict[str, Any]) -> None:
        append_log(output, row)
        if on_log is not None:
            on_log(row)

    with ThreadPoolExecutor(8) as threads, Progress(*_COLUMNS) as progress:
        bar = progress.add_task("", total=config.max_steps, completed=step, loss="-")
        shown = load_pairs(held_out, range(len(held_out.names)), threads)

        def measure(mine: TextEncoder, seen: ImageEncoder) -> Figures:
            return pair_figures(mine, seen, original, image, *shown, config)

        output.mkdir(parents=True, exist_ok=True)
        before: Figures = state["before"] if state is not None else measure(original, image)
        write_state(output, identity, finished=False, before=before)
        cut_log(output, step)
        if step == 0:
            log({"step": 0} | before)
        while step < config.max_steps:
            seed = config.seed * 1_000_003 + step
            torch.manual_seed(seed)
            for group in optimiser.param_groups:
                group["lr"] = config.lr * rate(step, config.max_steps, config.warmup_steps)
            numbers = batch_indices(len(pairs.names), step * config.batch_size, config.batch_size, config.seed)
            captions, drawn = load_pairs(pairs, numbers, threads)
            clean = image.prepare(drawn).to(device)
            text_anchor, image_anchor = embed(original, captions), image.embed(clean).to(device)
            towers.eval()
            attacked = attack_captions(leaf, texts, captions, text_anchor, k=config.k, constraint=constraint, seed=seed)
            pixels = pgd.search(clean, FeatureDrift(images.features, image_anchor), seed).pixels
            towers.train()
            said, seen = bucketed(texts.features, texts.tokenize(attacked)), images.features(pixels)
            loss = textfare_loss(said, text_anchor) / text_anchor.square().sum(-1).mean()
            loss = loss + textfare_loss(seen, image_anchor) / image_anchor.square().sum(-1).mean()
            loss = loss + config.pair_weight * pair_loss(said, seen, text_anchor, image_anchor, config.temperature)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            value = loss.item()
            if not math.isfinite(value):
                raise ValueError(f"step {step + 1}: the loss is {value}; lower lr={config.lr:g}")
            step += 1
            progress.update(bar, completed=step, loss=f"{value:.4f}")
            row: dict[str, Any] = {"step": step, "loss": value, "lr": optimiser.param_groups[0]["lr"]}
            measured = step % config.eval_every == 0 or step == config.max_steps
            if measured:
                towers.eval()
                row |= measure(texts, images)
            if step % LOG_EVERY == 0 or measured:
                log(row)
            if step % config.checkpoint_every == 0 or step == config.max_steps:
                checkpoint.save(step, {}, {})
        towers.eval()
        after = measure(texts, images)
    counts = {"steps": config.max_steps, "pairs": len(pairs.names), "held_out": len(shown[0])}
    card = joint_card(original.name, image.name, config, before, after, counts)
    for part, reading in (("text", original.tokenizer), ("image", image.processor)):
        (output / part).mkdir(exist_ok=True)
        save_encoder(towers[part], reading, card, output / part, torch.float32)  # type: ignore[arg-type]
    write_state(output, identity, finished=True, before=before, after=after, counts=counts)
    checkpoint.remove()


def pair_figures(
    text: TextEncoder,
    image: ImageEncoder,
    text_original: TextEncoder,
    image_original: ImageEncoder,
    captions: list[str],
    drawn: list[Any],
    config: JointConfig,
) -> Figures:
    """Recall@1 among these pairs, of images by captions, each clean or attacked: `recall_clean`, `recall_text` (the
    captions attacked), `recall_image`, `recall_both`; and the relative losses `drift_text`, `drift_image`.

    Attacks: LEAF with rho 50 and PGD of twice the training's steps, on the towers that are measured. Pairs whose captions
    are equal count as one another's.
    """
    clean = image.prepare(drawn).to(image.device)
    text_anchor, image_anchor = embed(text_original, captions), image_original.embed(clean).to(image.device)
    attacked = attack_captions(
        LeafAttack(rho=HELD_OUT_RHO), text, captions, text_anchor, k=config.k,
        constraint=constraint_from_name(config.constraint), seed=0,
    )  # fmt: skip
    pgd = PGD(eps=config.eps / 255, steps=2 * config.attack_steps)
    parts = range(0, len(clean), config.batch_size)
    moved = torch.cat([
        pgd.search(clean[i : i + config.batch_size], FeatureDrift(image.features, image_anchor[i : i + config.batch_size]), 0).pixels
        for i in parts
    ])  # fmt: skip
    said = {"clean": embed(text, captions), "attacked": embed(text, attacked)}
    seen = {"clean": image.embed(clean), "attacked": image.embed(moved)}
    same = torch.tensor([[a == b for b in captions] for a in captions])

    def recall(texts: str, images: str) -> float:
        cosines = normalize(said[texts], dim=-1) @ normalize(seen[images].to(said[texts].device), dim=-1).T
        return float(same[torch.arange(len(captions)), cosines.argmax(1).cpu()].float().mean())

    return {
        "recall_clean": recall("clean", "clean"),
        "recall_text": recall("attacked", "clean"),
        "recall_image": recall("clean", "attacked"),
        "recall_both": recall("attacked", "attacked"),
        "drift_text": float(textfare_loss(said["attacked"], text_anchor) / text_anchor.square().sum(-1).mean()),
        "drift_image": float(
            textfare_loss(seen["attacked"].to(image_anchor.device), image_anchor) / image_anchor.square().sum(-1).mean()
        ),
    }


def _identity(
    text: HFTextEncoder, image: ImageEncoder, pairs: Pairs, held_out: Pairs, config: JointConfig
) -> dict[str, Any]:
    settings = asdict(config)
    for name in ("checkpoint_every", "eval_every"):
        del settings[name]
    named = {"pairs": pairs, "held_out": held_out}
    hashes = {
        key: hashlib.sha256("\n".join(value.names).encode(errors="surrogateescape")).hexdigest()
        for key, value in named.items()
    }
    return settings | hashes | {"text": text.fingerprint, "image": image.fingerprint}
