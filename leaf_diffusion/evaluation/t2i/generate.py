"""Images: every planned one drawn once, recorded as soon as its batch is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from leaf_diffusion.diffusion.families import family_of
from leaf_diffusion.evaluation.encoders import with_encoder
from leaf_diffusion.evaluation.t2i.plan import ImageUnit, content_id
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.runs import RunStore, png_ok
from leaf_diffusion.runs.records import AttackRecord, ImageRecord, parse


class Drawing:
    """Draws the units of a run. One image that several units show (same weights, text, noise) is drawn once; one that is
    recorded but missing or damaged is drawn again."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._planned: dict[str, ImageRecord] = {}
        self._attacked: dict[tuple[str, int, str], str] = {}
        self._pipeline: tuple[str, Any] = ("", None)

    @cached_property
    def _weights(self) -> dict[str, str]:
        return {label: one.base_fingerprint for label, one in self.setup.encoders.items()}

    def weights(self, store: RunStore, unit: ImageUnit) -> str:
        """Fingerprint of the text encoders that the unit is drawn with."""
        return self._weights[unit.cell.encoder]

    def image(self, store: RunStore, unit: ImageUnit) -> str:
        """The unit's image; known once the attacks are recorded."""
        return self._record(store, unit).image

    def __call__(self, store: RunStore, units: Sequence[ImageUnit]) -> list[ImageRecord]:
        """Draw the images of units with the same weights, all in one batch where one of them is missing."""
        records = [self._record(store, unit) for unit in units]
        wanted = {record.image: (record.given, unit.seed) for record, unit in zip(records, units, strict=True)}
        if missing := {path for path in wanted if not png_ok(store.folder / path)}:
            texts, seeds = zip(*wanted.values(), strict=True)
            drawn = draw(self._with(units[0].cell.encoder), texts, seeds, self.setup)
            for path, image in zip(wanted, drawn, strict=True):
                if path in missing:
                    store.save_image(path, image)
        return records

    def _with(self, encoder: str) -> Any:
        """The pipeline around an encoder; one at a time is kept."""
        weights = self._weights[encoder]
        if self._pipeline[0] != weights:
            self._pipeline = weights, with_encoder(self.setup.pipeline, self.setup.encoders[encoder])
        return self._pipeline[1]

    def _record(self, store: RunStore, unit: ImageUnit) -> ImageRecord:
        if unit.id not in self._planned:
            self._planned[unit.id] = self._plan(store, unit)
        return self._planned[unit.id]

    def _plan(self, store: RunStore, unit: ImageUnit) -> ImageRecord:
        cell, prompt, loaded = unit.cell, unit.prompt, self.setup.encoders[unit.cell.encoder]
        if not self._attacked:
            found = store.records("attacks", AttackRecord)
            self._attacked = {(each.source, each.k, each.prompt_id): each.perturbed for each in found}
        text = prompt.text if cell.source is None else self._attacked[cell.source, cell.k, prompt.id]
        given = loaded.encoder.preprocess([text])[0]
        name = content_id(weights=self._weights[cell.encoder], given=given, seed=unit.seed)
        values = {
            "id": unit.id,
            "prompt_id": prompt.id,
            "prompt": text,
            "original": prompt.text,
            **asdict(cell),
            "seed_index": unit.seed_index,
            "seed": unit.seed,
            "image": f"images/{name}.png",
            "given": given,
            "truncated": loaded.base.is_truncated([given])[0],
        }
        return parse(ImageRecord, values)


def draw(pipeline: Any, texts: Sequence[str], seeds: Sequence[int], setup: Setup) -> list[Image.Image]:
    """One image a text, each from a CPU generator of its own.

    Raises ValueError that names the text of an image with NaN, which would be written as a black one.
    """
    options = setup.options
    # Qwen-Image's own guidance takes a negative prompt, which its authors give as a blank
    guided = {"true_cfg_scale": options.guidance, "negative_prompt": [" "] * len(texts)}
    drawn: Tensor = pipeline(
        prompt=list(texts),
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        num_inference_steps=options.steps,
        **(guided if family_of(setup.pipeline).true_cfg else {"guidance_scale": options.guidance}),
        height=options.height,
        width=options.width,
        output_type="pt",
    ).images
    for text, seed, finite in zip(texts, seeds, drawn.isfinite().flatten(1).all(1).tolist(), strict=True):
        if not finite:
            raise ValueError(
                f"the image of {text!r} (noise {seed}) holds NaN: the weights are damaged, or the pipeline "
                f"overflows in {options.dtype}; take --dtype float32 or bfloat16, or a VAE that is made for float16"
            )
    processor = setup.pipeline.image_processor
    images: list[Image.Image] = processor.numpy_to_pil(processor.pt_to_numpy(drawn))
    return images
