"""Fast towers of T5 and language models: they give what the pipelines' own `encode_prompt` gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline

from leaf_diffusion.attacks import Charmer
from leaf_diffusion.diffusion.pipeline_encoder import PipelineEncoder
from leaf_diffusion.diffusion.readings import sequence_encoder
from leaf_diffusion.encoders.features import Hidden, MeanState, Readout
from leaf_diffusion.scoring import Drift, Scorer
from leaf_diffusion.text import Candidates
from tests import tiny
from tests.pipelines.conftest import KINDS
from tests.pipelines.languages import klein, lumina, pixart, pixart_alpha, qwen_image, sana, z_image
from tests.pipelines.test_leaf_flux import flux_parts, t5, t5_tokenizer

PROMPTS = ["A red umbrella", "two cats", " a  photo of <b>Dogs</b>, 3 of them! ", "", "x" * 700]


def flux() -> FluxPipeline:
    return FluxPipeline(**flux_parts(tiny.tower))


def sd3() -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(**{**KINDS["sd3"].parts(), "text_encoder_3": t5(), "tokenizer_3": t5_tokenizer()})


MAKERS: dict[str, tuple[Callable[[], Any], str]] = {
    "flux": (flux, "text_encoder_2"),
    "sd3": (sd3, "text_encoder_3"),
    "pixart": (pixart, "text_encoder"),
    "pixart-alpha": (pixart_alpha, "text_encoder"),
    "sana": (sana, "text_encoder"),
    "lumina": (lumina, "text_encoder"),
    "z-image": (z_image, "text_encoder"),
    "qwen-image": (qwen_image, "text_encoder"),
    "klein": (klein, "text_encoder"),
}


@pytest.fixture(params=list(MAKERS))
def made(request: pytest.FixtureRequest) -> tuple[Any, str]:
    maker, part = MAKERS[request.param]
    return maker(), part


def test_it_gives_what_encode_prompt_gives(made: tuple[Any, str]) -> None:
    pipe, part = made
    encoder, slow = sequence_encoder(pipe, part), PipelineEncoder(pipe)
    rows = encoder.tokenize(PROMPTS)
    assert len(rows[-1]) == encoder.context_length  # one prompt is cut
    ids = encoder._pad(rows, Readout())
    content = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    with torch.no_grad():
        states, given = encoder.states(ids, content), encoder.given(content)
    for prompt, mine, kept in zip(PROMPTS, states, given, strict=True):
        (*_, wanted) = slow([prompt])[0].states
        mine = mine[kept]
        if isinstance(pipe, StableDiffusion3Pipeline):  # it writes the CLIPs' 77 states before those of T5
            wanted = wanted[77:]
        assert (mine - wanted).norm() <= 1e-5 * wanted.norm(), prompt


def test_features_are_of_what_is_given_whatever_stands_beside_it(made: tuple[Any, str]) -> None:
    encoder = sequence_encoder(*made)
    rows = encoder.tokenize(["a red umbrella", "cat", "a long line of old words"])
    for feature in (Readout(8), MeanState()):
        together = encoder.features(rows, feature)
        for row, mine in zip(rows, together, strict=True):
            alone = encoder.features([row], feature)[0]
            assert (mine - alone).norm() <= 1e-5 * alone.norm()
    assert encoder.features([], Readout(8)).shape == (0, together.shape[1] * 8)


@pytest.mark.parametrize("kind", ["sd3", "pixart", "z-image", "qwen-image"])
def test_an_attack_takes_them(kind: str) -> None:
    maker, part = MAKERS[kind]
    encoder = sequence_encoder(maker(), part)
    scorer = Scorer(encoder)
    assert scorer.objective_name == "drift(l2, readout of 64 queries)"
    (result,) = Charmer(n_positions=1)(["a red hat"], scorer, constraint=None)
    assert result.distance == 1
    assert result.score > 0
    assert result.token_ids == encoder.tokenize([result.perturbed])[0]


def test_candidates_are_read_as_texts_are(made: tuple[Any, str]) -> None:
    encoder = sequence_encoder(*made)
    many = [
        Candidates.from_texts(["a b", "A b", "a b"]),
        Candidates.none(),
        Candidates.edits("red hat", [1, 2], ["A", "B"]),
    ]
    read = encoder.read_candidates(many)
    for rows, each in zip(read, many, strict=True):
        assert rows == list(map(tuple, encoder.tokenize(each.texts())))


def test_what_only_a_clip_has_is_refused(made: tuple[Any, str]) -> None:
    encoder = sequence_encoder(*made)
    rows = encoder.tokenize(["a"])
    for what in ("pooled", "projected", Hidden()):
        with pytest.raises(ValueError, match="has token states and no"):
            encoder.features(rows, what)
    with pytest.raises(ValueError, match="takes more than"):
        encoder.features([[1] * (encoder.context_length + 1)])
    assert Scorer(encoder, Drift("cosine", feature=MeanState())).bind(["a"]).clean() == pytest.approx([0], abs=1e-6)


@pytest.mark.parametrize("name", ["pixart", "lumina", "z-image"])
def test_rows_of_the_table_give_the_features_of_their_tokens(name: str) -> None:
    maker, part = MAKERS[name]
    encoder = sequence_encoder(maker(), part)
    rows = encoder.tokenize(["a red hat", "cat"])
    ids = [[*row, *[encoder.pad_id] * (max(map(len, rows)) - len(row))] for row in rows]
    table = encoder.token_embedding().detach()
    embeds = table[torch.tensor(ids)].requires_grad_()
    found = encoder.features_from_embeddings(embeds, rows, MeanState())
    torch.testing.assert_close(found, encoder.features(rows, MeanState()))
    (slope,) = torch.autograd.grad(found.sum(), embeds)
    assert slope.abs().sum() > 0
    (gradient,) = Scorer(encoder).bind(["a red hat"]).gradient([rows[0]])
    assert gradient.shape == (len(rows[0]), len(table))
