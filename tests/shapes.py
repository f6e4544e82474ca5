"""Shapes are checked while tests run: a wrong array in a call or a result of an annotated function raises TypeError.

Only arrays are checked (``Float[Tensor, "n d"]``, and of a list of them one that beartype draws): the other annotations
are mypy's, and many of them are names that exist for the type checker alone.
"""

import inspect
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

P = ParamSpec("P")
R = TypeVar("R")
ROOT = Path(__file__).parents[1]


def annotated() -> Iterator[str]:
    """Dotted names of the library's modules that annotate shapes."""
    for folder, package in (("leaf_diffusion", ""), ("eval", "leaf_diffusion."), ("pipelines", "leaf_diffusion.")):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if "from jaxtyping import" in file.read_text():
                parts = file.relative_to(ROOT).with_suffix("").parts
                yield package + ".".join(parts).removesuffix(".__init__")


def holds_array(annotation: object) -> bool:
    """Whether an array's shape stands anywhere in the annotation."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(map(holds_array, typing.get_args(annotation)))


def arrays_only(function: Callable[..., Any]) -> Callable[..., Any]:
    """The type checker that jaxtyping is given: checks the arrays among the arguments and in the result."""
    function.__annotations__ = {k: v for k, v in function.__annotations__.items() if holds_array(v)}
    return beartype(function) if function.__annotations__ else function


def unchecked(function: Callable[P, R]) -> Callable[P, R]:
    """The function as users call it, whose own errors a test looks at."""
    return inspect.unwrap(function)


def install() -> None:
    """Check the shapes of every module that is imported from now on."""
    install_import_hook(list(annotated()), "tests.shapes.arrays_only")
