"""What goes beyond the paper's loss: token tables that know spelling, and token states."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection

from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.finetune import TextFAREConfig, finetune_text_encoder, reachable_tokens
from leaf_diffusion.finetune.anchors import embed, states_loss
from leaf_diffusion.finetune.spelling import KINDS, N_VECTORS, SpellingEmbedding, spelling_features, spelt
from leaf_diffusion.finetune.tower import SEEN, merge_table, trainable_copy
from leaf_diffusion.scoring import Scorer
from leaf_diffusion.text import neighbours
from leaf_diffusion.tokens.tokenizer import clip_tokenizer

CAPTIONS = [f"a photo of a {c} {n}" for c in ("red", "blue", "green") for n in ("cat", "house", "boat", "umbrella")]
KEY = "text_model.embeddings.token_embedding.weight"
TOKENIZER = clip_tokenizer()
VOCABULARY = TOKENIZER.get_vocab()


class Interrupt(Exception):
    pass


def config(**settings: object) -> TextFAREConfig:
    common = {"rho": 6, "batch_size": 8, "lr": 2e-3, "warmup_steps": 2, "checkpoint_every": 2, "eval_every": 100}
    return TextFAREConfig(**{**common, **settings})  # type: ignore[arg-type]


def test_spelling_features_are_those_of_the_piece() -> None:
    features = spelling_features(VOCABULARY, 49408)

    def of(token: str) -> set[int]:
        return set(features[VOCABULARY[token]].tolist()) - {N_VECTORS}

    assert {0, 2, 19} <= of("cat</w>")  # a, c, t
    singles = {i for i in of("cat</w>") if i < KINDS}
    assert singles == {0, 2, 19, 36}  # and the end of the word
    assert singles - {i for i in of("cat") if i < KINDS} == {36}
    assert len(of("cat</w>") & of("bat</w>")) > len(of("cat</w>") & of("dog</w>"))
    assert of("<|endoftext|>") == set()
    assert of("!</w>") != of("cat</w>")
    assert features.min() >= 0
    assert features.max() == N_VECTORS


def test_a_spelling_table_starts_at_the_original_and_merges_into_a_plain_one(encoder: HFTextEncoder) -> None:
    tower = trainable_copy(encoder, spelling=True)
    trained = HFTextEncoder(tower, TOKENIZER)
    torch.testing.assert_close(embed(trained, CAPTIONS), embed(encoder, CAPTIONS))
    table = tower.text_model.embeddings.token_embedding
    assert isinstance(table, SpellingEmbedding)
    with torch.no_grad():
        table.spelling[:-1].normal_()
    before = embed(trained, ["a cta", "xyzzy", "a photo of a hosue"])
    # the engine of the attack reads the same table
    fast, plain = (
        Scorer(trained, engine=e).bind(["a cat"])([neighbours("a cat", "b!")])[0] for e in ("prefix", "plain")
    )
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    vectors = merge_table(tower)
    assert vectors is not None
    assert torch.equal(tower.state_dict()[KEY], encoder.token_embedding() + spelt(table.letters, vectors))
    torch.testing.assert_close(embed(trained, ["a cta", "xyzzy", "a photo of a hosue"]), before)
    assert merge_table(tower) is None


def test_spelling_teaches_tokens_that_training_has_not_met(encoder: HFTextEncoder, tmp_path: Path) -> None:
    folder = finetune_text_encoder(encoder, CAPTIONS, tmp_path, config(max_steps=8, spelling=True), held_out=CAPTIONS)
    tower = CLIPTextModelWithProjection.from_pretrained(folder)
    vectors = load_file(folder / "spelling.safetensors")["spelling"]
    unseen = VOCABULARY["zebra</w>"]
    moved = tower.state_dict()[KEY][unseen] - encoder.token_embedding()[unseen]
    letters = torch.from_numpy(spelling_features(VOCABULARY, 49408))[[unseen]]
    torch.testing.assert_close(moved[None], spelt(letters, vectors), rtol=1e-4, atol=1e-6)
    assert moved.abs().max() > 0


@pytest.mark.parametrize("spelling", [False, True])
def test_only_the_rows_of_the_given_tokens_are_trained(encoder: HFTextEncoder, tmp_path: Path, spelling: bool) -> None:
    tokens = reachable_tokens(encoder, CAPTIONS[:2], often=2)
    assert VOCABULARY["photo</w>"] in tokens
    assert VOCABULARY["umbrella</w>"] not in tokens
    parameters = dict(trainable_copy(encoder, spelling=spelling, tokens=tokens).named_parameters())
    table = "text_model.embeddings.token_embedding"
    assert not parameters[f"{table}.weight"].requires_grad
    assert parameters[f"{table}.own"].shape == (len(tokens) + 1, 32)
    settings = config(max_steps=6, spelling=spelling)

    def stop(row: dict[str, float]) -> None:
        if row["step"] == 4:
            raise Interrupt

    once = finetune_text_encoder(encoder, CAPTIONS, tmp_path / "once", settings, held_out=CAPTIONS, tokens=tokens)
    broken = config(max_steps=6, spelling=spelling, eval_every=4)
    with pytest.raises(Interrupt):
        finetune_text_encoder(
            encoder, CAPTIONS, tmp_path / "twice", broken, held_out=CAPTIONS, tokens=tokens, on_log=stop
        )
    twice = finetune_text_encoder(encoder, CAPTIONS, tmp_path / "twice", broken, held_out=CAPTIONS, tokens=tokens)
    states = [load_file(folder / "model.safetensors") for folder in (once, twice)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    moved = states[0][KEY] - encoder.token_embedding()
    if spelling:
        vectors = load_file(once / "spelling.safetensors")["spelling"]
        moved -= spelt(torch.from_numpy(spelling_features(VOCABULARY, 49408)), vectors)
    rows = (moved.abs() > 1e-5).any(1).nonzero().flatten().tolist()
    assert rows
    assert set(rows) <= set(tokens)
    with pytest.raises(ValueError, match="tokens"):
        finetune_text_encoder(encoder, CAPTIONS, tmp_path / "twice", broken, held_out=CAPTIONS, tokens=tokens[1:])


@pytest.mark.parametrize(
    ("tokens", "settings", "message"),
    [([], {}, "at least one"), ([-1], {}, "0 to 49407"), ([49408], {}, "0 to 49407"), ([5], {"lora_rank": 2}, "LoRA")],
)
def test_tokens_that_cannot_be_trained(
    encoder: HFTextEncoder, tmp_path: Path, tokens: list[int], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        finetune_text_encoder(encoder, CAPTIONS, tmp_path, config(max_steps=4, **settings), tokens=tokens)
    assert not list(tmp_path.iterdir())


def test_spelling_needs_clips_pieces(encoder: HFTextEncoder) -> None:
    class Other:
        def get_vocab(self) -> dict[str, int]:
            return {"cat": 0}

    with pytest.raises(ValueError, match="byte-pair encoding"):
        SpellingEmbedding(torch.nn.Embedding(3, 2), Other())


def test_states_loss_counts_positions_from_begin_on() -> None:
    states, anchor = torch.zeros(2, 4, 3), torch.zeros(2, 4, 3)
    states[0, 0] = 1.0
    states[1, 0], states[1, 2] = 5.0, 2.0
    # 4 positions of the first, 2 of the second
    assert float(states_loss(states, anchor, [0, 2])) == pytest.approx((3 + 12) / 6)
    with pytest.raises(ValueError, match="do not fit"):
        states_loss(states, anchor, [0])


def test_token_states_stay_nearer_to_the_original(encoder: HFTextEncoder, tmp_path: Path) -> None:
    clean = encoder.tokenize(CAPTIONS)
    wanted = encoder.features(clean, SEEN).detach()
    apart = {}
    for weight in (0.0, 2.0):
        settings = config(max_steps=20, states_weight=weight, states_captions=8)
        folder = finetune_text_encoder(encoder, CAPTIONS, tmp_path / str(weight), settings, held_out=CAPTIONS)
        tower = HFTextEncoder(CLIPTextModelWithProjection.from_pretrained(folder).eval(), TOKENIZER)
        apart[weight] = float((tower.features(clean, SEEN).detach() - wanted).square().mean())
    assert apart[2.0] < 0.5 * apart[0.0]


def test_an_interrupted_training_with_both_ends_with_the_same_weights(
    encoder: HFTextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(max_steps=6, spelling=True, states_weight=0.5, states_captions=4)

    def run(name: str) -> dict[str, torch.Tensor]:
        folder = finetune_text_encoder(encoder, CAPTIONS, tmp_path / name, settings, held_out=CAPTIONS)
        return load_file(folder / "model.safetensors")

    whole, calls = run("whole"), 0

    def broken(*args: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise Interrupt
        return states_loss(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("leaf_diffusion.finetune.textfare.states_loss", broken)
        with pytest.raises(Interrupt):
            run("cut")
    resumed = run("cut")
    assert whole and all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_a_further_stage_starts_where_it_is_told_and_keeps_the_anchor(encoder: HFTextEncoder, tmp_path: Path) -> None:
    first = finetune_text_encoder(encoder, CAPTIONS, tmp_path / "1", config(max_steps=15), held_out=CAPTIONS)
    begun = HFTextEncoder(CLIPTextModelWithProjection.from_pretrained(first).eval(), TOKENIZER)
    settings = config(max_steps=2, lr=1e-9, spelling=True)
    second = finetune_text_encoder(encoder, CAPTIONS, tmp_path / "2", settings, held_out=CAPTIONS, start=begun)
    ended = HFTextEncoder(CLIPTextModelWithProjection.from_pretrained(second).eval(), TOKENIZER)
    torch.testing.assert_close(embed(ended, CAPTIONS), embed(begun, CAPTIONS), rtol=1e-3, atol=1e-4)
    log = (second / "training_log.jsonl").read_text().splitlines()
    assert '"drift_clean": 0.0,' in log[0].replace("-0.0,", "0.0,")  # measured against the original, before any stage
    with pytest.raises(ValueError, match=r"other settings .start"):
        finetune_text_encoder(encoder, CAPTIONS, tmp_path / "2", settings, held_out=CAPTIONS)
