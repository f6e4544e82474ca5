"""Scores of images: CLIPScore, scene accuracy, drift from the same encoder's clean image of the same noise."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from PIL import Image
from torch import Tensor

from leaf_diffusion.evaluation.t2i.judges import ImageTextModel, Judges
from leaf_diffusion.evaluation.t2i.plan import ImageUnit
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.metrics import clip_score_from_features, feature_drift
from leaf_diffusion.reports.results import OF_IMAGES
from leaf_diffusion.runs import RunStore
from leaf_diffusion.runs.records import ImageRecord, ScoreRecord, parse
from leaf_diffusion.world.scenes import Scene

AT_ONCE = 256


class Scoring:
    """Scores the images of a run.

    Drift is measured against the same encoder's clean image from the same noise: what the attack moved, not what the
    encoders differ by. The floor's images are measured against the clean ones of noise 0. What the encoders differ by is
    the swap drift of clean images, against the first encoder's of the same noise. CLIPScore is left out where a prompt was
    attacked on the judging CLIP itself.
    """

    def __init__(self, setup: Setup, judges: Judges) -> None:
        self.setup, self.judges = setup, judges
        self._own = () if judges.clip is None else setup.sources_that_are(judges.clip.text_fingerprint)
        self._images: dict[str, ImageRecord] = {}
        self._clean: dict[tuple[str, str, int], str] = {}

    def __call__(self, store: RunStore, units: Sequence[ImageUnit]) -> list[ScoreRecord]:
        if not self._images:
            self._images = {image.id: image for image in store.records("images", ImageRecord)}
            for each in self._images.values():
                if each.protocol == "clean":
                    self._clean[each.encoder, each.prompt_id, each.seed_index] = each.image
        first = self.setup.plan.cells[0].encoder
        batch = [self._images[unit.id] for unit in units]
        references = [
            self._clean[
                first if each.protocol == "clean" else each.encoder,
                each.prompt_id,
                0 if each.protocol == "floor" else each.seed_index,
            ]
            for each in batch
        ]
        images = {path: store.load_image(path) for path in dict.fromkeys([*references, *(i.image for i in batch)])}
        return _score(batch, references, images, [unit.prompt.scene for unit in units], self.judges, first, self._own)


def _score(
    batch: Sequence[ImageRecord],
    references: Sequence[str],
    images: dict[str, Image.Image],
    scenes: Sequence[Scene | None],
    judges: Judges,
    first: str,
    own: Collection[str],
) -> list[ScoreRecord]:
    shown = [images[each.image] for each in batch]
    moved = [each.protocol != "clean" for each in batch]
    swapped = [each.protocol == "clean" and each.encoder != first for each in batch]
    pairs = [(image, images[reference]) for image, reference in zip(shown, references, strict=True)]
    measured = {key: [measure(*pair) for pair in pairs] for key, measure in OF_IMAGES.items()}
    columns: dict[str, Sequence[object]] = {key: _where(moved, values) for key, values in measured.items()}
    columns["swap_drift"] = _where(swapped, measured["drift"])
    if judges.clip is not None:
        features = dict(zip(images, judges.clip.encode_image(list(images.values())), strict=True))
        columns |= _clip_columns(batch, references, moved, swapped, features, judges.clip, own)
    asked = {i: scene for i, scene in enumerate(scenes) if scene is not None and judges.scenes is not None}
    if asked:
        right = judges.scenes.correct([shown[i] for i in asked], list(asked.values()))
        found = dict(zip(asked, right, strict=True))
        columns["scene_correct"] = [found.get(i) for i in range(len(batch))]
    return [
        parse(ScoreRecord, {"id": each.id} | {name: values[i] for name, values in columns.items()})
        for i, each in enumerate(batch)
    ]


def _clip_columns(
    batch: Sequence[ImageRecord],
    references: Sequence[str],
    moved: Sequence[bool],
    swapped: Sequence[bool],
    features: dict[str, Tensor],
    clip: ImageTextModel,
    own: Collection[str],
) -> dict[str, Sequence[object]]:
    texts = list(dict.fromkeys(text for each in batch for text in (each.original, each.prompt)))
    captions = dict(zip(texts, clip.encode_text(texts), strict=True))
    for what, named in (("image", features), ("caption", captions)):
        for name, each in named.items():
            if not each.isfinite().all():
                raise ValueError(f"the judging CLIP gives the {what} {name!r} features of NaN or infinity")
    pairs = [(features[each.image], each) for each in batch]
    drift = [feature_drift(f, features[b]) for (f, _), b in zip(pairs, references, strict=True)]
    judged = [each.source not in own for each in batch]
    return {
        "clip_score": _where(judged, [clip_score_from_features(f, captions[each.original]) for f, each in pairs]),
        "clip_score_attacked_caption": _where(
            judged, [clip_score_from_features(f, captions[each.prompt]) for f, each in pairs]
        ),
        "drift_features": _where(moved, drift),
        "swap_drift_features": _where(swapped, drift),
    }


def _where(told: Sequence[bool], values: Sequence[float]) -> list[float | None]:
    return [value if right else None for right, value in zip(told, values, strict=True)]
