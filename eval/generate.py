"""Pictures: every planned one drawn once, recorded as soon as its batch is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image

from leaf_diffusion.encoders.base import Tower
from leaf_diffusion.eval.plan import PictureUnit, content_id
from leaf_diffusion.eval.search import Attacked, chunks
from leaf_diffusion.eval.setup import Setup
from leaf_diffusion.pipelines import LeafStableDiffusionPipeline
from leaf_diffusion.runs import RunStore
from leaf_diffusion.world.figures import noise_seed


def draw_all(setup: Setup, store: RunStore, attacked: Attacked, advance: Callable[[int], None]) -> None:
    """Draw every planned picture. One that another unit already drew (same weights, text, noise) is used again.

    A picture that was recorded but is missing or damaged on the disk is drawn again.
    """
    done, damaged = store.done("pictures"), store.damaged_images()
    drawn = {row["image"] for row in store.records("pictures")} - damaged
    weights_of = {label: one.base.fingerprint for label, one in setup.encoders.items()}
    by_weights: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for unit in setup.plan.pictures():
        weights = weights_of[unit.cell.encoder]
        row = _picture_row(setup, unit, attacked, weights) if unit.id not in done or damaged else None
        if row is not None and (unit.id not in done or row["image"] in damaged):
            by_weights.setdefault(weights, {}).setdefault(row["image"], []).append(row)
    bases = {weights_of[label]: one.base for label, one in setup.encoders.items()}
    for weights, wanted in by_weights.items():
        for image in [image for image in wanted if image in drawn]:
            advance(_append(store, wanted.pop(image)))
        if not wanted:
            continue
        pipeline = with_encoder(setup.pipeline, bases[weights])
        for batch in chunks(list(wanted.values()), setup.options.batch_size):
            pictures = draw(pipeline, [rows[0]["given"] for rows in batch], [rows[0]["seed"] for rows in batch], setup)
            for rows, picture in zip(batch, pictures, strict=True):
                store.save_image(rows[0]["image"], picture)
                advance(_append(store, rows))


def with_encoder(pipeline: Any, encoder: Tower) -> Any:
    """The pipeline around another text encoder; the rest is shared."""
    swapped = LeafStableDiffusionPipeline.from_pipe(pipeline, text_encoder=encoder, dtype=pipeline.dtype)
    swapped.set_progress_bar_config(disable=True)
    return swapped


def draw(pipeline: Any, texts: Sequence[str], seeds: Sequence[int], setup: Setup) -> list[Image.Image]:
    """One picture a text, each from a CPU generator of its own."""
    options = setup.options
    pictures: list[Image.Image] = pipeline(
        list(texts),
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        height=options.height,
        width=options.width,
    ).images
    return pictures


def _picture_row(setup: Setup, unit: PictureUnit, attacked: Attacked, weights: str) -> dict[str, Any]:
    cell, prompt = unit.cell, unit.prompt
    text = prompt.text if cell.source is None else attacked[cell.source, cell.k, prompt.id]
    loaded = setup.encoders[cell.encoder]
    given, seed = loaded.encoder.preprocess([text])[0], noise_seed(prompt.id, unit.seed_index)
    return {
        "unit": "picture",
        "id": unit.id,
        "prompt_id": prompt.id,
        "prompt": text,
        "original": prompt.text,
        **asdict(cell),
        "seed_index": unit.seed_index,
        "seed": seed,
        "image": f"images/{content_id(weights=weights, given=given, seed=seed)}.png",
        "given": given,
        "truncated": loaded.base.is_truncated([given])[0],
    }


def _append(store: RunStore, rows: Iterable[dict[str, Any]]) -> int:
    """Record pictures; how many were new (a redrawn one is not)."""
    return sum(store.append("pictures", row) for row in rows)
