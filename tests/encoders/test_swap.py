"""Exchanging a pipeline's text model: each misfit is named."""

import pytest
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.encoders.swap import check_swap, exchanged, text_model_for_pipeline
from leaf_diffusion.tokens.tokenizer import clip_tokenizer
from tests.tiny import TOKENIZER, Changes, tower


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 24}, r"width \(hidden_size\): the pipeline has 16, the new encoder 24"),
        ({"vocab_size": 50000}, "vocabulary .*49408, the new encoder 50000"),
        ({"max_position_embeddings": 64}, "context length .*77, the new encoder 64"),
        ({"num_attention_heads": 1}, r"heads \(num_attention_heads\): the pipeline has 2, the new encoder 1"),
        ({"hidden_act": "gelu"}, r"activation \(hidden_act\): the pipeline has quick_gelu, the new encoder gelu"),
        ({"layer_norm_eps": 1e-2}, r"epsilon of the norms .*: the pipeline has 1e-05, the new encoder 0.01"),
        ({"num_hidden_layers": 1}, "depth .*: the pipeline has 2 blocks, the new encoder 1"),
        ({"num_hidden_layers": 4}, "depth .*: the pipeline has 2 blocks, the new encoder 4"),
        ({"num_hidden_layers": 3, "hidden_act": "gelu"}, "activation .*; depth .*: the pipeline has 2 blocks, .* 3"),
        ({"eos_token_id": 7}, r"pooling \(eos_token_id\).*49407, the new encoder pools at 7"),
    ],
)
def test_misfits_are_named(changes: Changes, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_swap(tower(CLIPTextModel), tower(CLIPTextModelWithProjection, 0, **changes), TOKENIZER)


def test_all_misfits_at_once() -> None:
    with pytest.raises(ValueError, match=r"width.*; context length"):
        check_swap(tower(CLIPTextModel), tower(hidden_size=24, max_position_embeddings=64), TOKENIZER)


def test_projection_counts_where_the_pipeline_uses_one() -> None:
    check_swap(tower(CLIPTextModel), tower(projection_dim=4), TOKENIZER)
    with pytest.raises(ValueError, match="projection width: the pipeline has 8, the new encoder 4"):
        check_swap(tower(), tower(projection_dim=4), TOKENIZER)
    check_swap(tower(), tower(CLIPTextModel), TOKENIZER)  # the pipeline's own projection stays


def test_other_tokenizers() -> None:
    check_swap(tower(CLIPTextModel), tower(), TOKENIZER, clip_tokenizer())
    other = clip_tokenizer()
    other.add_tokens(["<cat-toy>"])
    with pytest.raises(ValueError, match="1 entries of the two vocabularies differ, such as '<cat-toy>'"):
        check_swap(tower(CLIPTextModel), tower(), TOKENIZER, other)


def test_legacy_pooling_fits_until_tokens_are_added() -> None:
    check_swap(tower(CLIPTextModel), tower(eos_token_id=2), TOKENIZER)
    extended = clip_tokenizer()
    extended.add_tokens(["<cat-toy>"])
    with pytest.raises(ValueError, match="pools at 49408"):
        check_swap(tower(CLIPTextModel), tower(eos_token_id=2), extended)


def test_becomes_the_pipelines_class_dtype_and_copy() -> None:
    new, like = tower(seed=1), tower(CLIPTextModel, seed=2).to(torch.float16)
    encoder = HFTextEncoder(new, TOKENIZER)
    built = text_model_for_pipeline(encoder, like)
    assert type(built) is CLIPTextModel
    assert built.dtype == torch.float16
    assert new.dtype == torch.float32
    ids = torch.tensor(encoder.tokenize(["a red umbrella"]))
    exact = text_model_for_pipeline(encoder, tower(CLIPTextModel, seed=2))
    assert torch.equal(exact(ids).last_hidden_state, new(ids).last_hidden_state)
    before = new(ids).last_hidden_state.clone()
    with torch.no_grad():
        exact.final_layer_norm.bias += 1
    assert torch.equal(new(ids).last_hidden_state, before)


def test_activation_comes_with_the_encoder() -> None:
    new = tower(seed=1, hidden_act="gelu", num_hidden_layers=3)
    built = text_model_for_pipeline(new, tower(CLIPTextModel))
    ids = torch.tensor([[49406, 320, 49407]])
    assert torch.equal(built(ids).last_hidden_state, new(ids).last_hidden_state)


def test_a_half_precision_config_does_not_round_the_weights() -> None:
    new = tower(seed=1)
    new.config.dtype = torch.float16  # as in a config.json saved beside half-precision weights
    built = text_model_for_pipeline(new, tower(CLIPTextModel))
    assert built.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), new.text_model.parameters(), strict=True))


def test_the_right_module_is_used_as_it_is() -> None:
    model = tower(CLIPTextModel, seed=1)
    assert text_model_for_pipeline(model, tower(CLIPTextModel)) is model


def test_a_missing_projection_is_the_one_that_was_there() -> None:
    new, old = tower(CLIPTextModel, seed=1), tower(projection_dim=4)
    built = text_model_for_pipeline(new, old)
    assert type(built) is type(old)
    assert torch.equal(built.text_projection.weight, old.text_projection.weight)
    assert built.config.projection_dim == 4
    inner = {key.removeprefix("text_model."): value for key, value in built.state_dict().items()}
    assert all(torch.equal(inner[key.removeprefix("text_model.")], value) for key, value in new.state_dict().items())


def test_what_is_no_text_tower() -> None:
    with pytest.raises(ValueError, match="Linear is no CLIP text tower"):
        text_model_for_pipeline(torch.nn.Linear(2, 2), tower())


@pytest.mark.parametrize("kind", [CLIPTextModel, CLIPTextModelWithProjection])
def test_a_whole_clip_loses_the_block_that_the_pipeline_does_not_have(kind: type) -> None:
    whole = tower(kind, num_hidden_layers=3)
    short = tower(CLIPTextModel, seed=5)  # as Stable Diffusion 2 holds ViT-H: the same CLIP, the last block dropped
    weights = {name.removeprefix("text_model."): value for name, value in whole.state_dict().items()}
    short.load_state_dict({name: weights[name.removeprefix("text_model.")] for name in short.state_dict()})
    module, encoder = exchanged(short, TOKENIZER, whole)
    rows = encoder.tokenize(["a red umbrella on a beach"])
    with torch.no_grad():
        expected, found = (each(torch.tensor(rows)).last_hidden_state for each in (short, module))
    assert torch.equal(found, expected)
    assert module.config.num_hidden_layers == 2 and whole.config.num_hidden_layers == 3
    assert not encoder.has_projection  # it was trained on what the last block makes
    assert torch.equal(encoder.features(rows, "pooled"), HFTextEncoder(short, TOKENIZER).features(rows, "pooled"))


def test_values_beyond_the_pipelines_dtype_are_refused() -> None:
    large = tower(CLIPTextModel)
    large.state_dict()["final_layer_norm.bias"].fill_(1e6)
    with pytest.raises(ValueError, match=r"final_layer_norm.bias has values that torch.float16 cannot hold"):
        text_model_for_pipeline(HFTextEncoder(large, TOKENIZER), tower(CLIPTextModel).half())
