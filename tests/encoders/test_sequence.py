"""T5, UMT5, BERT and language models as text encoders: rows, features, identity."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPTextModel,
    Gemma2Config,
    Gemma2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    UMT5Config,
    UMT5EncoderModel,
)

from leaf_diffusion.attacks import Exhaustive
from leaf_diffusion.encoders.bidirectional import BidirectionalTextEncoder
from leaf_diffusion.encoders.decoder import DecoderTextEncoder
from leaf_diffusion.encoders.defences import Speller
from leaf_diffusion.encoders.features import MeanState, Readout
from leaf_diffusion.encoders.sequence import SequenceTextEncoder
from leaf_diffusion.scoring import Scorer
from leaf_diffusion.tokens.reading import Lowered, Reading
from tests import tiny
from tests.pipelines.languages import SIZES, TEXTS, byte_level_tokenizer
from tests.pipelines.test_leaf_flux import t5, t5_tokenizer

READING = Reading(24, "read: ", " now", clean=Lowered())


def bert() -> SequenceTextEncoder:
    torch.manual_seed(0)
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(TEXTS, vocab_size=200, show_progress=False)
    config = BertConfig(
        vocab_size=pieces.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
    )
    tokenizer = BertTokenizerFast(tokenizer_object=pieces._tokenizer, model_max_length=64)
    return BidirectionalTextEncoder(BertModel(config).eval(), tokenizer, reading=Reading(64), name="bert")


def umt5() -> SequenceTextEncoder:
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return BidirectionalTextEncoder(UMT5EncoderModel(config).eval(), t5_tokenizer(), reading=Reading(24, padded=True))


def gemma() -> SequenceTextEncoder:
    torch.manual_seed(0)
    module = Gemma2Model(Gemma2Config(vocab_size=320, **SIZES)).eval()
    return DecoderTextEncoder(module, byte_level_tokenizer(), reading=READING)


def qwen() -> SequenceTextEncoder:
    torch.manual_seed(0)
    module = Qwen3ForCausalLM(Qwen3Config(vocab_size=320, **SIZES)).eval()
    return DecoderTextEncoder(
        module, byte_level_tokenizer(), reading=Reading(64, chat=(("enable_thinking", True),), layers=(-2, 1))
    )


MAKERS: list[Callable[[], SequenceTextEncoder]] = [bert, umt5, gemma, qwen]


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__)
def encoder(request: pytest.FixtureRequest) -> SequenceTextEncoder:
    make: Callable[[], SequenceTextEncoder] = request.param
    return make()


def test_bert_is_the_mean_of_its_states() -> None:
    encoder = bert()
    row = encoder.tokenize(["two cats"])[0]
    with torch.no_grad():
        wanted = encoder.tower(torch.tensor([row])).last_hidden_state[0].mean(0)
    assert torch.allclose(encoder.features([row, [*row, 0]], MeanState())[0], wanted, atol=1e-6)


def test_embeddings_of_ones_own_choice(encoder: SequenceTextEncoder) -> None:
    rows = encoder.tokenize(["a red umbrella", "cats"])
    table, longest = encoder.token_embedding(), max(map(len, rows))
    embeds = torch.stack([table[torch.tensor(row + [encoder.pad_id] * (longest - len(row)))] for row in rows])
    wanted = encoder.features(rows, Readout(4))
    assert torch.allclose(encoder.features_from_embeddings(embeds, rows, Readout(4)), wanted, atol=1e-5)
    everywhere = encoder.features_from_vectors(
        encoder.looked_up(table[None])[0], torch.arange(len(table)), rows, Readout(4)
    )
    assert torch.allclose(everywhere, wanted, atol=1e-5)
    (slope,) = Scorer(encoder).bind(["a red umbrella"]).gradient([encoder.tokenize(["a rex umbrella"])[0]])
    assert slope.shape == (len(encoder.tokenize(["a rex umbrella"])[0]), len(table))
    assert slope.isfinite().all()


def test_all_edits_of_a_short_text(encoder: SequenceTextEncoder) -> None:
    (found,) = Exhaustive()(["cat"], Scorer(encoder), k=1, constraint=None)
    rows = encoder.tokenize(["cat", found.perturbed])
    clean, edited = encoder.features(rows)
    assert found.score == pytest.approx(float((edited - clean).square().sum()), rel=1e-4)


def test_what_changes_states_changes_the_fingerprint(encoder: SequenceTextEncoder) -> None:
    kind, module, tokenizer = type(encoder), encoder.module, encoder.tokenizer
    known = {encoder.fingerprint}
    assert kind(module, tokenizer, reading=encoder.reading).fingerprint in known  # whatever it is called
    for reading in (Reading(23), Reading(24, "say ")):
        known.add(kind(module, tokenizer, reading=reading).fingerprint)
    known.add(kind(module, tokenizer, reading=encoder.reading, defence=Speller(["cat"])).fingerprint)
    with torch.no_grad():
        encoder.token_embedding()[5] += 1
    known.add(encoder.fingerprint)
    assert len(known) == 5


def test_how_a_prompt_is_read() -> None:
    encoder = gemma()
    assert encoder.rows.written("  Two CATS ") == "read: two cats now"
    assert encoder.tokenize([" A Cat"]) == encoder.tokenize(["a cat"])
    assert "".join(piece for word in encoder.words("two cats") for piece in word) == "read:twocatsnow"
    assert encoder.is_truncated(["cat", "x" * 40]) == [False, True]
    chat = qwen().rows.written("hi")
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant"


def test_what_does_not_fit_is_refused() -> None:
    letters = t5_tokenizer()
    with pytest.raises(ValueError, match="is no T5EncoderModel"):
        BidirectionalTextEncoder(tiny.tower(CLIPTextModel), letters, reading=READING)
    with pytest.raises(ValueError, match="no language model that is known here"):
        DecoderTextEncoder(nn.Linear(2, 2), letters, reading=READING)
    with pytest.raises(ValueError, match="no chat template"):
        BidirectionalTextEncoder(t5(), letters, reading=Reading(24, chat=()))
    with pytest.raises(ValueError, match="2 blocks, so there is no hidden state 3"):
        BidirectionalTextEncoder(t5(), letters, reading=Reading(24, layers=(3,)))
    with pytest.raises(ValueError, match="cannot be dropped"):
        Reading(24, dropped=(3, 30))
    with pytest.raises(ValueError, match="embeds only 60 tokens"):
        BidirectionalTextEncoder(t5(), byte_level_tokenizer(), reading=Reading(24))
    left = byte_level_tokenizer()
    left.padding_side = "left"
    with pytest.raises(ValueError, match="pads on the left"):
        DecoderTextEncoder(gemma().module, left, reading=Reading(24, padded=True))


def test_a_tower_of_half_precision_keeps_it() -> None:
    encoder = qwen()
    encoder.module.to(torch.bfloat16)
    found = encoder.features(encoder.tokenize(["cat"]))
    assert encoder.dtype == torch.bfloat16
    assert found.dtype == torch.float32
