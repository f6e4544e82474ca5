"""Images: every planned one drawn once, recorded as soon as its batch is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image

from leaf_diffusion.evaluation.encoders import with_encoder
from leaf_diffusion.evaluation.t2i.attack import Attacked
from leaf_diffusion.evaluation.t2i.plan import ImageUnit, content_id
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.runs import RunStore, png_ok
from leaf_diffusion.runs.scheduler import Advance, Batch, chunks, run_batches
from leaf_diffusion.world.figures import noise_seed


def draw_all(setup: Setup, store: RunStore, attacked: Attacked, advance: Advance) -> None:
    """Draw every planned image; one that several units ask for (same weights, text, noise) is drawn once.

    An image that was recorded but is missing or damaged on the disk is drawn again.
    """
    damaged = store.damaged_images()
    weights_of = {label: one.base_fingerprint for label, one in setup.encoders.items()}
    by_weights: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for unit in setup.plan.images():
        weights = weights_of[unit.cell.encoder]
        row = _image_row(setup, unit, attacked, weights)
        by_weights.setdefault(weights, {}).setdefault(row["image"], []).append(row)
    bases = {weights_of[label]: one for label, one in setup.encoders.items()}
    pipelines: dict[str, Any] = {}

    def batch(weights: str, wanted: Sequence[list[dict[str, Any]]]) -> Batch:
        def work() -> None:
            missing = {rows[0]["image"] for rows in wanted if not png_ok(store.folder / rows[0]["image"])}
            if missing:
                if weights not in pipelines:
                    pipelines.clear()
                    pipelines[weights] = with_encoder(setup.pipeline, bases[weights])
                texts, seeds = [rows[0]["given"] for rows in wanted], [rows[0]["seed"] for rows in wanted]
                for rows, image in zip(wanted, draw(pipelines[weights], texts, seeds, setup), strict=True):
                    if rows[0]["image"] in missing:
                        store.save_image(rows[0]["image"], image)
            for row in (row for rows in wanted for row in rows):
                store.append("images", row)

        redo = [rows[0]["image"] for rows in wanted if rows[0]["image"] in damaged]
        return Batch([row["id"] for rows in wanted for row in rows], work, redo)

    batches = [
        batch(weights, wanted)
        for weights, images in by_weights.items()
        for wanted in chunks(list(images.values()), setup.options.at_once(setup.options.batch_size))
    ]
    run_batches(store, "images", batches, advance)


def draw(pipeline: Any, texts: Sequence[str], seeds: Sequence[int], setup: Setup) -> list[Image.Image]:
    """One image a text, each from a CPU generator of its own."""
    options = setup.options
    images: list[Image.Image] = pipeline(
        list(texts),
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        height=options.height,
        width=options.width,
    ).images
    return images


def _image_row(setup: Setup, unit: ImageUnit, attacked: Attacked, weights: str) -> dict[str, Any]:
    cell, prompt = unit.cell, unit.prompt
    text = prompt.text if cell.source is None else attacked[cell.source, cell.k, prompt.id]
    loaded = setup.encoders[cell.encoder]
    given, seed = loaded.encoder.preprocess([text])[0], noise_seed(prompt.id, unit.seed_index)
    return {
        "unit": "image",
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
