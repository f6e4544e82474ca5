"""Images of every condition with every encoder, and what they are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from PIL import Image

from leaf_diffusion.evaluation.experiment import Setting
from leaf_diffusion.evaluation.swap_cost.conditions import Condition
from leaf_diffusion.evaluation.swap_cost.setup import pipeline_with
from leaf_diffusion.evaluation.swap_cost.training import has_style
from leaf_diffusion.evaluation.t2i.generate import draw
from leaf_diffusion.evaluation.t2i.judges import Judges
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.evaluation.tasks.units import Noted, unit_name
from leaf_diffusion.metrics import clip_score_from_features, feature_drift, pixel_rmse
from leaf_diffusion.runs import RunStore, image_name
from leaf_diffusion.runs.experiment_records import SwapImage, SwapScore
from leaf_diffusion.runs.results import GivenPrompt, MeasuredCondition
from leaf_diffusion.tokens.tokenizer import RowTokenizer
from leaf_diffusion.world.figures import noise_seed

CLEAN, FLOOR = "clean", "floor"
"""Protocols: FLOOR is the first encoder's images from another noise."""


@dataclass(frozen=True, eq=False)
class Series:
    """The images of a condition with one encoder."""

    condition: Condition
    encoder: str
    protocol: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.condition.key, self.encoder, self.protocol


def series_units(
    conditions: Sequence[Condition], labels: Sequence[str]
) -> dict[tuple[str, str, str, int], tuple[Series, int]]:
    """What is drawn: each prompt of every encoder's images of each condition, the first encoder's first, then the floor's."""
    places = [*((label, CLEAN) for label in labels), (labels[0], FLOOR)]
    found = [Series(condition, *place) for condition in conditions for place in places]
    return {(*one.key, number): (one, number) for one in found for number in range(len(one.condition.prompts))}


def draw_series(store: RunStore, setup: Setup, series: Series, numbers: Sequence[int], seed: int) -> list[SwapImage]:
    """Draw the images of some prompts of a series into the run, and say whether the encoder cut the prompt."""
    loaded, asked = setup.encoders[series.encoder], [series.condition.prompts[number] for number in numbers]
    given = loaded.encoder.preprocess([each.given for each in asked])
    seeds = [noise_seed(each.id, seed + (series.protocol == FLOOR)) for each in asked]
    negative = [each.negative for each in asked]
    with pipeline_with(setup, series.encoder, series.condition.files_of(series.encoder)) as pipeline:
        whole = RowTokenizer(pipeline.tokenizer)(pipeline.maybe_convert_prompt(given, pipeline.tokenizer))
        drawing = pipeline if None in negative else partial(pipeline, negative_prompt=negative)
        images = draw(drawing, given, seeds, setup)
    paths = [
        store.save_image(image_name(f"{series.key} {number}"), image)
        for number, image in zip(numbers, images, strict=True)
    ]
    limit, (condition, encoder, protocol) = loaded.base.context_length, series.key
    return [
        SwapImage(condition=condition, encoder=encoder, protocol=protocol, number=number, image=path,
                  truncated=len(row) > limit)
        for number, path, row in zip(numbers, paths, whole, strict=True)
    ]  # fmt: skip


def score_series(
    store: RunStore, series: Series, numbers: Sequence[int], first: str, judges: Judges, *, style: bool
) -> list[SwapScore]:
    """Scores by metric of some images of a series; drift is from the images of the encoder `first`, of the same prompts.

    `style`: also whether each image has the style that the world's LoRA was trained on (1 or 0).
    """
    drawn = {
        (one.condition, one.encoder, one.protocol, one.number): one.image for one in store.records("images", SwapImage)
    }
    images = [store.load_image(drawn[(*series.key, number)]) for number in numbers]
    condition, encoder, protocol = series.key
    origin = (condition, first, CLEAN)
    firsts = None if series.key == origin else [store.load_image(drawn[(*origin, number)]) for number in numbers]
    return [
        SwapScore(condition=condition, encoder=encoder, protocol=protocol, number=number, scores=scores)
        for number, scores in zip(numbers, _scores(series, numbers, images, firsts, judges, style), strict=True)
    ]


def _scores(
    series: Series,
    numbers: Sequence[int],
    images: Sequence[Image.Image],
    firsts: Sequence[Image.Image] | None,
    judges: Judges,
    style: bool,
) -> list[dict[str, float]]:
    asked, clip = [series.condition.prompts[number] for number in numbers], judges.clip
    features = None if clip is None else clip.encode_image(list(images))
    columns: dict[str, Sequence[float]] = {}
    if firsts is not None:
        columns["drift"] = [pixel_rmse(a, b) for a, b in zip(images, firsts, strict=True)]
        if clip is not None and features is not None:
            pairs = zip(features, clip.encode_image(list(firsts)), strict=True)
            columns["drift_features"] = [feature_drift(a, b) for a, b in pairs]
    if series.protocol == CLEAN:
        captions = [each.caption for each in asked if each.caption is not None]
        if judges.scenes is not None and all(each.scene is not None for each in asked):
            columns["scene_accuracy"] = judges.scenes.correct(images, [each.scene for each in asked])
        if style:
            columns["style"] = [has_style(image) for image in images]
        if clip is not None and features is not None and len(captions) == len(asked):
            pairs = zip(features, clip.encode_text(captions), strict=True)
            columns["clip_score"] = [clip_score_from_features(a, b) for a, b in pairs]
    return [{name: float(values[i]) for name, values in columns.items()} for i in range(len(asked))]


def swap_clusters(conditions: Sequence[Condition]) -> dict[str, str]:
    """The first noun of each prompt of a condition that has a scene."""
    return {
        unit_name(number, f"{condition.key} "): asked.scene.things[0].noun
        for condition in conditions
        for number, asked in enumerate(condition.prompts)
        if asked.scene is not None
    }


def swap_values(scores: Sequence[SwapScore]) -> Noted:
    """Each metric of each prompt of a condition with an encoder."""
    found = Noted()
    for score in scores:
        for metric, value in score.scores.items():
            place = Setting(score.encoder, metric, score.protocol, more=(("condition", score.condition),))
            found.note(place, unit_name(score.number, f"{score.condition} "), value)
    return found


def described(conditions: Sequence[Condition], images: Sequence[SwapImage]) -> list[MeasuredCondition]:
    """The conditions as results and page tell them."""
    cut: Mapping[str, dict[str, int]] = {condition.key: {} for condition in conditions}
    for image in images:
        if image.protocol == CLEAN:
            counts = cut[image.condition]
            counts[image.encoder] = counts.get(image.encoder, 0) + image.truncated
    return [
        MeasuredCondition(
            key=each.key,
            title=each.title,
            about=each.about,
            truncated=cut[each.key],
            prompts=[GivenPrompt(given=asked.given, negative=asked.negative) for asked in each.prompts],
        )
        for each in conditions
    ]
