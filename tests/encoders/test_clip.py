"""The towers of transformers, against transformers' own padded forward pass."""

from collections.abc import Sequence
from typing import Unpack

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from leaf_diffusion.encoders.base import Feature, Hidden, TextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.tokens.tokenizer import RowTokenizer, clip_tokenizer
from tests import tiny
from tests.tiny import TOKENIZER

SENTENCES = [
    "a red umbrella on a beach",
    "",
    "Café déjà vu 😀🐈 — naïve, “quoted”",
    "e\u0301 combining,  two   spaces\tand a tab ",
    "it's <|endoftext|> in the middle",
    "a very long sentence of words " * 20,
]


def tower(cls: type = CLIPTextModelWithProjection, seed: int = 0, **changes: Unpack[tiny.Changes]) -> PreTrainedModel:
    model = tiny.tower(cls, seed, **changes)
    for parameter in model.parameters():  # the small init of CLIP would hide a wrong position or a missing bias
        parameter.data.normal_(std=0.3)
    return model


MODEL = tower()
ENCODER = HFTextEncoder(MODEL, TOKENIZER)


def padded(texts: list[str]) -> torch.Tensor:
    return TOKENIZER(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_is_a_text_encoder() -> None:
    assert isinstance(ENCODER, TextEncoder)
    assert (ENCODER.context_length, ENCODER.dtype, ENCODER.device.type) == (77, torch.float32, "cpu")


def test_features_are_those_of_transformers() -> None:
    rows = ENCODER.tokenize(SENTENCES)
    output = MODEL(padded(SENTENCES), output_hidden_states=True)
    close(ENCODER.features(rows), output.text_embeds)
    close(ENCODER.features(rows, "pooled"), MODEL.text_model(padded(SENTENCES)).pooler_output)
    close(ENCODER.features(rows, Hidden(positions="all")), output.last_hidden_state.flatten(1))
    close(ENCODER.features(rows, Hidden(-2, "all")), output.hidden_states[-2].flatten(1))


@given(st.text(max_size=60).filter(lambda text: text.isprintable()))
@settings(max_examples=25, deadline=None)
def test_features_of_any_text(text: str) -> None:
    close(ENCODER.features(ENCODER.tokenize([text])), MODEL(padded([text])).text_embeds)


def test_hidden_content_is_zero_behind_end_of_text() -> None:
    rows = ENCODER.tokenize(SENTENCES[:3])
    content = ENCODER.features(rows, Hidden()).reshape(3, 77, -1)
    everything = ENCODER.features(rows, Hidden(positions="all")).reshape(3, 77, -1)
    for i, row in enumerate(rows):
        assert not content[i, len(row) :].any()
        assert everything[i, len(row) :].any()
        close(content[i, : len(row)], everything[i, : len(row)])


def test_batch_of_one_equals_batch_of_many() -> None:
    rows = ENCODER.tokenize(SENTENCES * 3)
    together = ENCODER.features(rows)
    close(together, torch.cat([ENCODER.features([row]) for row in rows]))


def test_truncation_keeps_end_of_text_and_is_counted() -> None:
    exact = "a " * 75
    rows = ENCODER.tokenize([exact, exact + "b", "a"])
    assert [len(row) for row in rows] == [77, 77, 3]
    assert all(row[0] == 49406 and row[-1] == 49407 for row in rows)
    assert ENCODER.is_truncated([exact, exact + "b", "a"]) == [False, True, False]


def test_padding_elsewhere_does_not_reach_the_encoder() -> None:
    tokenizer = clip_tokenizer()
    encoder = HFTextEncoder(MODEL, tokenizer)
    tokenizer(["a", "a long one"], padding=True)
    assert [len(row) for row in encoder.tokenize(["a", "a long one"])] == [3, 5]


@pytest.mark.parametrize("cls", [CLIPTextModel, CLIPTextModelWithProjection])
def test_legacy_end_of_text(cls: type[PreTrainedModel]) -> None:
    modern, legacy = tower(cls), tower(cls, eos_token_id=2)
    rows = ENCODER.tokenize(SENTENCES)
    features = HFTextEncoder(legacy, TOKENIZER).features(rows, "pooled")
    close(features, HFTextEncoder(modern, TOKENIZER).features(rows, "pooled"))
    text = legacy if cls is CLIPTextModel else legacy.text_model
    close(features, text(padded(SENTENCES)).pooler_output)


def test_text_half_of_a_clip_model() -> None:
    clip = tiny.clip()
    encoder = HFTextEncoder(clip, TOKENIZER)
    ids = padded(SENTENCES)
    expected = clip.text_projection(clip.text_model(ids).pooler_output)
    close(encoder.features(encoder.tokenize(SENTENCES)), expected)


def test_no_projection_is_said_clearly() -> None:
    encoder = HFTextEncoder(tower(CLIPTextModel), TOKENIZER)
    with pytest.raises(ValueError, match=r'no text projection.*feature="pooled"'):
        encoder.features(encoder.tokenize(["a"]))


def test_projection_given_from_outside() -> None:
    text_only = HFTextEncoder(MODEL.text_model, TOKENIZER, projection=MODEL.text_projection)
    rows = ENCODER.tokenize(SENTENCES)
    close(text_only.features(rows), ENCODER.features(rows))
    assert text_only.fingerprint == ENCODER.fingerprint  # the same tower, whatever class holds it


@pytest.mark.parametrize("what", ["projected", "pooled", Hidden(), Hidden(-2, "all")])
def test_features_from_embeddings(what: Feature) -> None:
    rows = ENCODER.tokenize(SENTENCES[:3])
    embeds = torch.zeros(3, max(map(len, rows)), 16)
    for i, row in enumerate(rows):
        embeds[i, : len(row)] = ENCODER.token_embedding()[row]
    embeds.requires_grad_()
    features = ENCODER.features_from_embeddings(embeds, rows, what)
    close(features, ENCODER.features(rows, what))
    (gradient,) = torch.autograd.grad(features.square().sum(), embeds)
    assert gradient[0].abs().sum() > 0


def test_no_rows_no_features() -> None:
    assert ENCODER.features([]).shape == (0, 8)


def test_rows_without_an_end_are_refused() -> None:
    with pytest.raises(ValueError, match="token row 1 has 2 tokens"):
        ENCODER.features([[49406, 49407], [49406, 320]])
    with pytest.raises(ValueError, match="at most 77"):
        ENCODER.features([[49406, *[320] * 76, 49407]])


def test_fingerprint_follows_weights_activation_and_defence() -> None:
    class Defence:
        name = fingerprint = "upper"

        def __call__(self, texts: Sequence[str]) -> list[str]:
            return [text.upper() for text in texts]

    model = tower()
    encoder = HFTextEncoder(model, TOKENIZER)
    first = encoder.fingerprint
    assert first == encoder.fingerprint == ENCODER.fingerprint
    with torch.no_grad():
        model.text_projection.weight[0, 0] += 1
    trained = encoder.fingerprint
    others = [HFTextEncoder(tower(hidden_act="gelu"), TOKENIZER), HFTextEncoder(tower(), TOKENIZER, defence=Defence())]
    assert len({first, trained, *(other.fingerprint for other in others)}) == 4


def test_misfitting_tokenizers() -> None:
    with pytest.raises(ValueError, match=r"largest token id is 49407.*embeds only 100"):
        HFTextEncoder(tower(vocab_size=100), TOKENIZER)
    with pytest.raises(ValueError, match="pools at token 7"):
        HFTextEncoder(tower(eos_token_id=7), TOKENIZER)
    with pytest.raises(TypeError, match="no tokenizer known here"):
        RowTokenizer(object())
    with pytest.raises(TypeError, match="put it in a list"):
        ENCODER.tokenize("one string")


def test_only_clip_text_towers() -> None:
    with pytest.raises(ValueError, match="Linear is no CLIP text tower"):
        HFTextEncoder(torch.nn.Linear(2, 2), TOKENIZER)


def test_the_tokenizer_is_open_clips() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    texts = ["a red umbrella, on the beach!", "It's 1.21 gigawatts", "ünïcode 日本語 😀", "wh1te c@t"]
    expected = [[49406, *SimpleTokenizer().encode(text), 49407] for text in texts]
    assert RowTokenizer(TOKENIZER)(texts) == expected == RowTokenizer(SimpleTokenizer())(texts)
    assert len(TOKENIZER) == 49408


def test_words_are_the_tokenizers_pieces() -> None:
    assert ENCODER.words("A red Umbrella") == [["a"], ["red"], ["umbrella"]]
    (article, word) = ENCODER.words("a umbrlla")
    assert article == ["a"]
    assert len(word) > 1
    assert "".join(word) == "umbrlla"
    assert ENCODER.words("") == []
