"""Half precision is tried on every CPU."""

import pytest

from leaf_diffusion.scoring import prefix_forest


@pytest.fixture(autouse=True)
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_forest, "multiplies_bfloat16", lambda: True)
