"""A score that is no number is an error that names encoder and prompt; its neighbours are not spoilt in silence."""

from typing import Literal

import pytest
import torch

from leaf_diffusion import Drift, Scorer
from leaf_diffusion.encoders import HFTextEncoder
from leaf_diffusion.scoring import Precision
from leaf_diffusion.text import Candidates
from tests import tiny


def spoilt(word: str) -> HFTextEncoder:
    """A tower that is NaN where it reads the word."""
    made = tiny.encoder(name="spoilt")
    with torch.no_grad():
        made.token_embedding()[made.tokenize([word])[0][1]] = torch.nan
    return made


@pytest.mark.parametrize(
    ("engine", "precision"), [("plain", "fp32"), ("prefix", "fp32"), ("prefix", "screen"), ("prefix", "half")]
)
def test_it_names_the_candidate(engine: Literal["plain", "prefix"], precision: Precision) -> None:
    prompts = ["a cat", "a red boat"]
    score = Scorer(spoilt("umbrella"), Drift("l2"), engine=engine, precision=precision).bind(prompts)
    fine = score([Candidates.from_texts(["a cta", "a bat"]), Candidates.from_texts(["a rde boat"])])
    assert [torch.isfinite(each).tolist() for each in fine] == [[True, True], [True]]
    with pytest.raises(ValueError, match="spoilt: the features of 'an umbrella' hold NaN"):
        score([Candidates.from_texts(["a cta", "a bat"]), Candidates.from_texts(["a red boat", "an umbrella"])])


def test_it_names_the_prompt_that_is_not_even_clean() -> None:
    with pytest.raises(ValueError, match="spoilt: the features of 'a red umbrella' hold NaN"):
        Scorer(spoilt("umbrella")).bind(["a cat", "a red umbrella"])


def test_features_name_the_text() -> None:
    encoder = spoilt("umbrella")
    with torch.no_grad(), pytest.raises(ValueError, match="spoilt: the features of 'an umbrella' hold NaN"):
        encoder.features(encoder.tokenize(["a cat", "an umbrella"]))
