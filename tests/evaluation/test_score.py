"""Scores of images: no judge of NaN, and none of prompts that were attacked on itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from leaf_diffusion.evaluation.t2i.judges import Judges, load_judges
from leaf_diffusion.evaluation.t2i.options import parse
from leaf_diffusion.evaluation.t2i.score import _score
from leaf_diffusion.evaluation.t2i.setup import prepare
from leaf_diffusion.runs.records import ImageRecord

PATH = "images/00000000.png"


class Judge:
    """Features of length 2; the caption `broken` has none."""

    fingerprint = text_fingerprint = "judge"

    def __init__(self, broken: str = "", image: float = 1.0) -> None:
        self.broken, self.image = broken, image

    def encode_image(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.tensor([[self.image, 1.0]] * len(images))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[float("nan") if text == self.broken else 1.0, 1.0] for text in texts])


def record(source: str | None) -> ImageRecord:
    return ImageRecord.model_validate(
        {"id": "1", "prompt_id": "p", "prompt": "a bat", "original": "a cat", "encoder": "leaf", "seed_index": 0, "seed": 1,
         "protocol": "transfer" if source else "clean", "source": source, "k": 1 if source else 0, "image": PATH,
         "given": "a bat", "truncated": False}
    )  # fmt: skip


def scored(judge: Judge, source: str | None, own: Sequence[str] = ()) -> dict[str, object]:
    images = {PATH: Image.new("RGB", (8, 8))}
    judges = Judges(judge, "judge", None, [])
    (found,) = _score([record(source)], [PATH], images, [None], judges, "original", own)
    return found.model_dump()


def test_the_judge_is_no_judge_of_prompts_attacked_on_itself() -> None:
    assert scored(Judge(), "leaf", ["judge"])["clip_score"] == pytest.approx(100)
    found = scored(Judge(), "judge", ["judge"])
    assert found["clip_score"] is None and found["clip_score_attacked_caption"] is None
    assert found["drift_features"] == pytest.approx(0, abs=1e-6)


def test_features_of_nan_are_named() -> None:
    with pytest.raises(ValueError, match=r"the image 'images/0{8}\.png' features of NaN"):
        scored(Judge(image=float("nan")), "leaf")
    with pytest.raises(ValueError, match="the caption 'a cat' features of NaN"):
        scored(Judge(broken="a cat"), "leaf")


def test_the_worlds_neutral_source_is_its_judge() -> None:
    options = parse(["--limit", "1", "--encoders", "original"])
    setup, judges = prepare(options), load_judges(options)
    assert judges.clip is not None
    assert setup.sources_that_are(judges.clip.text_fingerprint) == ["judge"]
    assert setup.sources_that_are("another") == []
