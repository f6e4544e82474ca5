"""Annotated shapes are checked in this very run, and no annotation escapes the check."""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from leaf_diffusion.finetune.anchors import textfare_loss
from leaf_diffusion.metrics.retrieval import ranks
from leaf_diffusion.scoring.objectives import squared_distance
from tests import shapes


def functions(module: ModuleType) -> Iterator[Callable[..., Any]]:
    """Every function and method that the module defines."""
    classes = [each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == module.__name__]
    for held in (module, *classes):
        for each in vars(held).values():
            plain = each.fget if isinstance(each, property) else getattr(each, "__func__", each)
            if inspect.isfunction(plain) and plain.__module__ == module.__name__:
                yield plain


def test_a_wrong_shape_is_refused() -> None:
    assert textfare_loss(torch.zeros(2, 3), torch.ones(2, 3)) == 3
    with pytest.raises(TypeCheckError, match="anchor_features"):
        textfare_loss(torch.zeros(2, 3), torch.zeros(1, 3))  # would broadcast, silently
    with pytest.raises(TypeCheckError, match="similarities"):
        ranks(torch.zeros(3), [0, 0, 0])
    with pytest.raises(TypeCheckError, match="vectors"):
        squared_distance(torch.zeros(2, 3), torch.zeros(1, 4))


def test_a_wrong_type_of_numbers_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="encoder_features"):
        textfare_loss(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3))


def test_arrays_in_a_list_are_checked() -> None:
    def scores(*shape: int) -> list[Float[Tensor, " n"]]:
        return [torch.zeros(shape), torch.zeros(shape)]

    checked = jaxtyped(typechecker=shapes.arrays_only)(scores)
    assert len(checked(2)) == 2
    with pytest.raises(TypeCheckError, match="return value"):
        checked(2, 2)


@pytest.mark.parametrize("name", sorted(shapes.annotated()))
def test_no_annotation_escapes(name: str) -> None:
    """A name that only a type checker imports could not be resolved, and its shape would silently not be checked."""
    module = importlib.import_module(name)
    seen = 0
    for function in functions(module):
        for annotation in inspect.get_annotations(function).values():
            if isinstance(annotation, str) and re.search(r"\b(Float|Int|Bool|Shaped|Num)\w*\[", annotation):
                annotation = eval(annotation, inspect.unwrap(function).__globals__)
                assert shapes.holds_array(annotation), annotation
            if shapes.holds_array(annotation):
                assert hasattr(function, "__wrapped__"), f"{function} is not checked"
                seen += 1
    assert seen
