"""Errors of files from outside, as errors that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading(source: str, problem: str) -> Iterator[None]:
    """Whatever transformers, tokenizers and safetensors raise on a damaged file becomes a ValueError naming `source`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # their errors have no base class in common
        ours = isinstance(error, ValueError) and str(error).startswith(f"{source}: ")
        to_install = (
            isinstance(error, ImportError) and error.name is None
        )  # "needs the package ...", not a file's doing
        if ours or to_install:
            raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{source}: {problem} ({type(error).__name__}: {reason})") from error


def looks_like_path(source: str) -> bool:
    """Whether a name can only be a path, so that it is never looked for on the Hugging Face Hub."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source or ":" in source
