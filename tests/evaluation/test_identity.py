"""A run is another run as soon as anything differs that decides its figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from leaf_diffusion.diffusion.families import configuration
from leaf_diffusion.evaluation.prompts import Prompt
from leaf_diffusion.evaluation.t2i.judges import Judges, load_judges
from leaf_diffusion.evaluation.t2i.options import parse
from leaf_diffusion.evaluation.t2i.plan import content_id
from leaf_diffusion.evaluation.t2i.setup import Setup, prepare
from leaf_diffusion.evaluation.t2i.specification import identity
from leaf_diffusion.world.judge_clip import JudgeClip
from leaf_diffusion.world.sources import load_judge_module

Change = Callable[[Setup, Judges], Judges]


@pytest.fixture(scope="module")
def made() -> tuple[Setup, Judges]:
    options = parse(["--limit", "1", "--encoders", "original"])
    return prepare(options), load_judges(options)


def another_vae_scale(setup: Setup, judges: Judges) -> Judges:
    setup.pipeline.vae.register_to_config(scaling_factor=setup.pipeline.vae.config.scaling_factor * 2)
    return judges


def another_unet_weight(setup: Setup, judges: Judges) -> Judges:
    with torch.no_grad():
        setup.pipeline.unet.conv_in.bias += 1
    return judges


def another_prediction(setup: Setup, judges: Judges) -> Judges:
    setup.pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    return judges


def another_judge(setup: Setup, judges: Judges) -> Judges:
    module = load_judge_module()
    with torch.no_grad():
        next(iter(module.parameters())).mul_(1.5)
    return dataclasses.replace(judges, clip=JudgeClip(module))


def another_real_image(setup: Setup, judges: Judges) -> Judges:
    first, *others = judges.real
    dotted = first.copy()
    dotted.putpixel((0, 0), (1, 2, 3))
    return dataclasses.replace(judges, real=[dotted, *others])


@pytest.mark.parametrize(
    "change", [another_vae_scale, another_unet_weight, another_prediction, another_judge, another_real_image]
)
def test_what_decides_a_figure_is_in_the_identity(made: tuple[Setup, Judges], change: Change) -> None:
    setup, judges = made
    before = identity(setup, judges)
    assert identity(setup, judges) == before
    assert identity(setup, change(setup, judges)) != before


def test_where_a_pipeline_came_from_is_not(made: tuple[Setup, Judges], tmp_path: Path) -> None:
    pipeline = made[0].pipeline
    before = configuration(pipeline)
    pipeline.save_pretrained(tmp_path / "copy")
    assert configuration(type(pipeline).from_pretrained(tmp_path / "copy")) == before


def test_ids_have_128_bits() -> None:
    assert len(Prompt("a cat").id) == len(content_id(unit="image")) == 32
    assert Prompt("a cat").id != Prompt("a hat").id
