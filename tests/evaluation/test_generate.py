"""What is drawn is what diffusers would draw, and never a black image in the place of NaN."""

from __future__ import annotations

import pytest
import torch

from leaf_diffusion.evaluation.t2i.generate import draw
from leaf_diffusion.evaluation.t2i.options import parse
from leaf_diffusion.evaluation.t2i.setup import Setup, prepare

TEXTS, SEEDS = ["a photo of a red cat", "a photo of a blue hat"], [3, 4]


@pytest.fixture
def setup() -> Setup:
    return prepare(parse(["--limit", "1", "--encoders", "original", "--steps", "2"]))


def test_the_images_are_those_of_diffusers(setup: Setup) -> None:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    options = setup.options
    wanted = setup.pipeline(
        TEXTS, generator=generators, num_inference_steps=options.steps, guidance_scale=options.guidance
    ).images
    drawn = draw(setup.pipeline, TEXTS, SEEDS, setup)
    assert [image.tobytes() for image in drawn] == [image.tobytes() for image in wanted]


def test_what_is_no_number_is_no_black_image(setup: Setup) -> None:
    with torch.no_grad():
        setup.pipeline.vae.decoder.conv_out.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"the image of 'a photo of a red cat' \(noise 3\) holds NaN: "):
        draw(setup.pipeline, TEXTS, SEEDS, setup)
