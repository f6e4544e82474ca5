"""The tiny pipelines of the other tier."""

from tests.pipelines.conftest import folders, kinds, new_tower

__all__ = ["folders", "kinds", "new_tower"]
