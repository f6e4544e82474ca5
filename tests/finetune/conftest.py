"""A tiny CLIP text tower with random weights and the real tokenizer."""

import pytest

from leaf_diffusion.encoders.clip import HFTextEncoder
from tests import tiny


@pytest.fixture(scope="module")
def encoder() -> HFTextEncoder:
    return tiny.encoder(**tiny.WIDER)
