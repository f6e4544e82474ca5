"""Images of every condition with every encoder, and what they are worth: values, result rows, counts."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from leaf_diffusion.evaluation.swap_cost.conditions import Asked, Condition
from leaf_diffusion.evaluation.swap_cost.setup import pipeline_with
from leaf_diffusion.evaluation.swap_cost.training import has_style
from leaf_diffusion.evaluation.t2i.generate import draw
from leaf_diffusion.evaluation.t2i.judges import Judges
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.metrics import clip_score_from_features, feature_drift, paired_bootstrap, pixel_rmse
from leaf_diffusion.runs import atomic_write
from leaf_diffusion.tokens.tokenizer import RowTokenizer
from leaf_diffusion.world.figures import noise_seed

FLOOR = "floor"
Series = tuple[str, str, str]
"""Condition, encoder, and "clean", or FLOOR for the first encoder's images from another noise."""
Values = dict[str, list[float]]


def series(condition: Condition, labels: Sequence[str]) -> list[Series]:
    """What is drawn for a condition: every encoder's images, the first encoder's first, then the floor's."""
    return [*((condition.key, label, "clean") for label in labels), (condition.key, labels[0], FLOOR)]


def draw_condition(
    setup: Setup, condition: Condition, seed: int, advance: Callable[[int], None]
) -> tuple[dict[Series, list[Image.Image]], dict[str, int]]:
    """The images of each series of a condition, and how many of its prompts each encoder cut."""
    images: dict[Series, list[Image.Image]] = {one: [] for one in series(condition, list(setup.encoders))}
    cut = {}
    for label, loaded in setup.encoders.items():
        given = loaded.encoder.preprocess([asked.given for asked in condition.prompts])
        with pipeline_with(setup, label, condition.files_of(label)) as pipeline:
            whole = RowTokenizer(pipeline.tokenizer)(pipeline.maybe_convert_prompt(given, pipeline.tokenizer))
            cut[label] = sum(len(row) > loaded.base.context_length for row in whole)
            for one in [one for one in images if one[1] == label]:
                seeds = [noise_seed(asked.id, seed + (one[2] == FLOOR)) for asked in condition.prompts]
                for start in range(0, len(given), setup.options.batch_size):
                    part = slice(start, start + setup.options.batch_size)
                    negative = [asked.negative for asked in condition.prompts[part]]
                    drawing = pipeline if None in negative else partial(pipeline, negative_prompt=negative)
                    images[one] += draw(drawing, given[part], seeds[part], setup)
                    advance(len(negative))
    return images, cut


def save_images(folder: Path, prompts: Sequence[Asked], images: Mapping[Series, Sequence[Image.Image]]) -> None:
    """Write the images of a condition's series, in the order of `series`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, (one, drawn) in enumerate(images.items()):
        for asked, image in zip(prompts, drawn, strict=True):
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            atomic_write(image_path(folder, one, number, asked), buffer.getvalue(), sync_name=False)


def image_path(folder: Path, one: Series, number: int, asked: Asked) -> Path:
    """images/<condition>-<number of the encoder, or floor>-<prompt id>.png: no label in a file name."""
    return folder / "images" / f"{one[0]}-{number if one[2] == 'clean' else FLOOR}-{asked.id}.png"


def measure(
    condition: Condition, images: Mapping[Series, Sequence[Image.Image]], judges: Judges, style: bool
) -> dict[Series, Values]:
    """Values by prompt of the condition's series; drift is against its first series (first encoder, the same prompt).

    `style`: also whether each image has the style that the world's LoRA was trained on (1 or 0).
    """
    prompts = condition.prompts
    first, *_ = images
    clip = judges.clip
    features = {one: clip.encode_image(list(drawn)) for one, drawn in images.items()} if clip is not None else {}
    captions = [asked.caption for asked in prompts if asked.caption is not None]
    texts = clip.encode_text(captions) if clip is not None and len(captions) == len(prompts) else None
    found: dict[Series, Values] = {}
    for one, drawn in images.items():
        values: Values = {}
        if one != first:
            values["drift"] = [pixel_rmse(a, b) for a, b in zip(drawn, images[first], strict=True)]
            if features:
                pairs = zip(features[one], features[first], strict=True)
                values["drift_features"] = [feature_drift(a, b) for a, b in pairs]
        if one[2] == "clean":
            if judges.scenes is not None and all(asked.scene is not None for asked in prompts):
                right = judges.scenes.correct(drawn, [asked.scene for asked in prompts])
                values["scene_accuracy"] = [float(each) for each in right]
            if style:
                values["style"] = [float(has_style(image)) for image in drawn]
            if texts is not None:
                pairs = zip(features[one], texts, strict=True)
                values["clip_score"] = [clip_score_from_features(a, b) for a, b in pairs]
        found[one] = values
    return found


def result_rows(measured: Mapping[Series, Values], first: str) -> list[dict[str, Any]]:
    """Means, and paired differences of every encoder to `first`, with 95% intervals over prompts.

    Drift has no difference: it is one already.
    """
    rows = []
    for (key, label, protocol), values in measured.items():
        for metric, each in values.items():
            rows.append(_row(key, label, protocol, None, metric, each, None))
            if label != first and not metric.startswith("drift"):
                against = measured[key, first, "clean"][metric]
                rows.append(_row(key, label, protocol, first, metric, each, against))
    return rows


def _row(
    key: str, label: str, protocol: str, baseline: str | None, metric: str, values: Any, against: Any
) -> dict[str, Any]:
    interval = paired_bootstrap(values, against)
    low, high = (None if math.isnan(each) else each for each in (interval.ci_low, interval.ci_high))
    return {
        "condition": key,
        "encoder": label,
        "baseline": baseline,
        "protocol": protocol,
        "metric": metric,
        "mean": interval.mean,
        "ci_low": low,
        "ci_high": high,
        "n": interval.n,
    }
