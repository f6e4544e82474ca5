"""The table of pipeline classes says what the classes really are and read."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import diffusers
import pytest
import torch

from leaf_diffusion.diffusion.families import FAMILIES, Family, denoiser_of, family_of, frozen_parts
from leaf_diffusion.encoders import HFTextEncoder

if TYPE_CHECKING:
    from tests.pipelines.conftest import Kind


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_row_names_what_the_stock_class_has(family: Family) -> None:
    stock, leaf = getattr(diffusers, family.stock), family.leaf_class()
    assert issubclass(leaf, stock) and family_of(leaf) is family_of(stock) is family_of(family.stock) is family
    parts = inspect.signature(stock.__init__).parameters
    assert {
        "vae",
        family.denoiser,
        *(name for each in family.text_encoders for name in (each.part, each.tokenizer)),
    } <= set(parts)
    assert [name for name in parts if name.startswith("text_encoder")] == [each.part for each in family.text_encoders]
    for each in family.text_encoders:
        named = str(parts[each.part].annotation)
        assert ("T5" in named) == (each.kind == "t5")
        assert ("Projection" in named) == (each.pooled == "projected")
    assert family.has_filter == ("safety_checker" in parts)
    assert inspect.signature(leaf.encode_prompt) == inspect.signature(stock.encode_prompt)


def test_the_states_are_those_that_encode_prompt_gives(kind: Kind) -> None:
    pipe = kind.leaf(**kind.parts())
    family = family_of(pipe)
    given = pipe.encode_prompt(
        **{name: "a red umbrella" for name in ("prompt", "prompt_2", "prompt_3") if name in signature(pipe)},
        device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False,
    )  # fmt: skip
    states, at = given[0], 0
    for each in family.clips:
        encoder = HFTextEncoder(getattr(pipe, each.part), getattr(pipe, each.tokenizer))
        rows = encoder.tokenize(["a red umbrella"])
        width = encoder.token_embedding().shape[1]
        own = encoder.features(rows, each.states).view(1, 77, width)
        torch.testing.assert_close(states[:, :77, at : at + width], own)
        at += width
    pooled = [each for each in family.clips if each.pooled]
    if pooled:
        found = [
            HFTextEncoder(getattr(pipe, each.part), pipe.tokenizer).features(rows, each.attacked) for each in pooled
        ]
        torch.testing.assert_close(given[2], torch.cat(found, dim=1))


def signature(pipe: diffusers.DiffusionPipeline) -> list[str]:
    return list(inspect.signature(pipe.encode_prompt).parameters)


def test_denoiser_and_frozen_parts(kind: Kind) -> None:
    parts = kind.parts()
    pipe = kind.leaf(**parts)
    assert denoiser_of(pipe) is parts[family_of(pipe).denoiser]
    assert frozen_parts(pipe) == [denoiser_of(pipe), parts["vae"]]


def test_what_is_unknown_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"KandinskyPipeline is no pipeline class .*; known: StableDiffusionPipeline, "
    ):
        family_of("KandinskyPipeline")
    with pytest.raises(ValueError, match="no token states of the text_encoder"):
        _ = FAMILIES["FluxPipeline"].states
