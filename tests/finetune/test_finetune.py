import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from leaf_diffusion.attacks import LeafAttack, RandomTypos
from leaf_diffusion.encoders import Feature, load_text_encoder
from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.finetune import TextFAREConfig, anchors, finetune_text_encoder, read_captions, split_captions
from leaf_diffusion.finetune.anchors import Anchors, attack_captions, bucketed, embed, textfare_loss
from leaf_diffusion.finetune.captions import batch_indices
from leaf_diffusion.finetune.textfare import held_out_figures
from leaf_diffusion.scoring import prefix_forest
from leaf_diffusion.scoring.forest import SortedRows
from leaf_diffusion.scoring.prefix_forest import PrefixForest
from leaf_diffusion.text import NoNewWords, distance
from leaf_diffusion.tokens.tokenizer import clip_tokenizer

COLOURS, THINGS = ("red", "blue", "green", "white"), ("cat", "house", "boat", "umbrella", "tree", "cup")
CAPTIONS = [f"a photo of a {c} {n}" for c in COLOURS for n in THINGS]
SETTINGS = {"rho": 6, "batch_size": 8, "lr": 2e-3, "warmup_steps": 2, "checkpoint_every": 2, "eval_every": 100}


class Interrupt(Exception):
    pass


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(CLIPTextModelWithProjection.from_pretrained(folder).state_dict())


def run(encoder: HFTextEncoder, folder: Path, **settings: object) -> Path:
    config = TextFAREConfig(**{**SETTINGS, **settings})  # type: ignore[arg-type]
    return finetune_text_encoder(encoder, CAPTIONS[:18], folder, config, held_out=CAPTIONS[18:])


def test_finetuning_lowers_the_drift_under_attack(encoder: HFTextEncoder, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in encoder.module.state_dict().items()}
    folder = run(encoder, tmp_path, max_steps=25)
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    assert log[-1]["drift_leaf"] < 0.8 * log[0]["drift_leaf"]
    assert all(torch.equal(value, before[key]) for key, value in encoder.module.state_dict().items())
    # what is written loads without this package, tokenizer and all, and says what was measured
    assert AutoTokenizer.from_pretrained(folder)("a cat")["input_ids"] == clip_tokenizer()("a cat")["input_ids"]
    finetuned = load_text_encoder(folder)
    targets = embed(encoder, CAPTIONS[18:])
    figures = held_out_figures(finetuned, CAPTIONS[18:], targets, k=1, constraint=NoNewWords())
    assert figures["drift_leaf"] == pytest.approx(log[-1]["drift_leaf"], rel=1e-3)
    assert f"{log[-1]['drift_leaf']:.3f}" in (folder / "README.md").read_text()
    # a token that no caption and no edit can hold has not moved
    unseen = clip_tokenizer()("zebra")["input_ids"][1]
    key = "text_model.embeddings.token_embedding.weight"
    assert torch.equal(weights(folder)[key][unseen], before[key][unseen])
    assert not list(folder.rglob("*.bin"))


def test_an_interrupted_training_ends_with_the_same_weights(
    encoder: HFTextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(run(encoder, tmp_path / "whole", max_steps=7))
    calls = 0

    def broken(*args: object, **kwargs: object) -> list[str]:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise Interrupt
        return attack_captions(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("leaf_diffusion.finetune.textfare.attack_captions", broken)
        with pytest.raises(Interrupt):
            run(encoder, tmp_path / "cut", max_steps=7)
    assert (tmp_path / "cut" / "checkpoint" / "state.safetensors").exists()
    with pytest.raises(ValueError, match="other settings"):
        run(encoder, tmp_path / "cut", max_steps=7, seed=1)
    # what a process that is killed while it writes leaves behind
    (tmp_path / "cut" / "checkpoint" / ".tmpA1b2C3").write_bytes(b"half")
    (tmp_path / "cut" / "checkpoint" / "state.partial").write_bytes(b"half")
    (tmp_path / "cut" / ".saving-x").mkdir()
    (tmp_path / "cut" / ".saving-x" / "model.safetensors").write_bytes(b"half")
    resumed = weights(run(encoder, tmp_path / "cut", max_steps=7))
    assert whole and all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert not (tmp_path / "cut" / "checkpoint").exists()
    assert not list((tmp_path / "cut").glob(".*"))


def test_accumulation_equals_the_larger_batch(encoder: HFTextEncoder, tmp_path: Path) -> None:
    large = weights(run(encoder, tmp_path / "a", max_steps=2, batch_size=8, lr=1e-4, attack="random-typos"))
    small = weights(
        run(encoder, tmp_path / "b", max_steps=2, batch_size=4, accumulation=2, lr=1e-4, attack="random-typos")
    )
    # a key's bias has no gradient but rounding, which Adam's first steps blow up to the size of lr
    start = {key: value for key, value in encoder.module.state_dict().items() if "k_proj.bias" not in key}
    moved = sum(float((large[key] - value).square().sum()) for key, value in start.items())
    apart = sum(float((large[key] - small[key]).square().sum()) for key in start)
    assert apart < 1e-3 * moved


def test_the_control_searches_nothing(encoder: HFTextEncoder, tmp_path: Path) -> None:
    asked, features, batches = 0, encoder.features, PrefixForest.batches

    def counted(rows: Sequence[Sequence[int]], what: Feature = "projected") -> torch.Tensor:
        nonlocal asked
        asked += len(rows)
        return features(rows, what)

    def counted_batches(
        forest: PrefixForest, rows: SortedRows, feature: Feature, max_nodes: int
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        nonlocal asked
        asked += len(rows)
        return batches(forest, rows, feature, max_nodes)

    settings = {"targets": embed(encoder, CAPTIONS), "k": 1, "constraint": NoNewWords(), "seed": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "features", counted)
        patch.setattr(PrefixForest, "batches", counted_batches)
        typos = attack_captions(RandomTypos(), encoder, CAPTIONS, **settings)
        assert asked == 0
        attack_captions(LeafAttack(rho=5), encoder, CAPTIONS, **settings)
        # two stages, the clean captions once, nothing twice: a training step pays no verification
        assert len(CAPTIONS) * 3 < asked <= len(CAPTIONS) * (2 * 5 + 1)
    assert all(distance(a, b) == 1 for a, b in zip(CAPTIONS, typos, strict=True))
    folder = run(encoder, tmp_path, max_steps=2, attack="random-typos")
    assert "a control" in (folder / "README.md").read_text()


def test_attacked_captions_drift_more_than_random_ones(encoder: HFTextEncoder) -> None:
    targets = embed(encoder, CAPTIONS)
    attacked = attack_captions(LeafAttack(rho=20), encoder, CAPTIONS, targets, k=1, constraint=NoNewWords(), seed=3)
    assert all(distance(a, b) <= 1 and NoNewWords().holds(a, b) for a, b in zip(CAPTIONS, attacked, strict=True))
    figures = held_out_figures(encoder, CAPTIONS, targets, k=1, constraint=NoNewWords())
    assert figures["drift_clean"] == pytest.approx(0, abs=1e-6)
    assert figures["drift_leaf"] > figures["drift_typos"] > 0


def test_anchors_are_computed_ahead_and_the_same_from_any_batch_on(encoder: HFTextEncoder) -> None:
    batches = [[f"{CAPTIONS[(3 * i + j) % len(CAPTIONS)]} {i}" for j in range(3)] for i in range(7)]
    asked: list[int] = []
    embedded = anchors.embed

    def watched(encoder: HFTextEncoder, texts: Sequence[str], feature: Feature) -> torch.Tensor:
        asked.append(len(texts))
        return embedded(encoder, texts, feature)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anchors, "embed", watched)
        ahead = Anchors(encoder, batches.__getitem__, len(batches), at_once=12)
        one_way = [ahead[i] for i in range(7)]
        assert asked == [12, 9]
    for i in reversed(range(7)):
        torch.testing.assert_close(one_way[i], embed(encoder, batches[i]))
        assert torch.equal(Anchors(encoder, batches.__getitem__, len(batches), at_once=12)[i], one_way[i])
    assert len(Anchors(encoder, batches.__getitem__, len(batches), at_once=1)[6]) == 3


def test_an_attack_in_half_precision_finds_about_as_much(
    encoder: HFTextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_forest, "multiplies_bfloat16", lambda: True)
    targets = embed(encoder, CAPTIONS)
    settings = {"k": 1, "constraint": NoNewWords(), "seed": 3}
    drifts = []
    for precision in ("fp32", "half"):
        attacked = attack_captions(LeafAttack(rho=20), encoder, CAPTIONS, targets, precision=precision, **settings)  # type: ignore[arg-type]
        drifts.append(float(textfare_loss(embed(encoder, attacked), targets)))
    assert drifts[1] > 0.95 * drifts[0]
    folder = run(encoder, tmp_path, max_steps=2, attack_precision="half")
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize("n", [0, 1, 3, 40, 120])
def test_buckets_give_the_same_features_from_less_padding(encoder: HFTextEncoder, n: int) -> None:
    rows = encoder.tokenize([f"{'word ' * (i * 7 % 20)}{i}" for i in range(n)])
    padded = 0

    def features(some: list[list[int]]) -> torch.Tensor:
        nonlocal padded
        padded += len(some) * max(map(len, some), default=0)
        return encoder.features(some)

    torch.testing.assert_close(bucketed(features, rows, at_once=15), encoder.features(rows))
    assert n < 40 or padded < 0.8 * n * max(map(len, rows))


def earlier_rate(step: int, steps: int, warmup_steps: int) -> float:
    """What the loop used before transformers' schedules: weights of earlier trainings follow from it."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))


@pytest.mark.parametrize(("steps", "warmup"), [(20, 5), (20, 0), (7, 1), (6, 6), (1, 0), (1000, 137)])
def test_the_schedule_is_the_one_of_earlier_trainings(steps: int, warmup: int) -> None:
    config = TextFAREConfig(lr=3e-4, warmup_steps=warmup, max_steps=steps)
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rate = config.rates(optimiser, steps)
    earlier = [3e-4 * earlier_rate(step, steps, warmup) for step in range(steps)]
    assert [rate(step) for step in range(steps)] == pytest.approx(earlier, rel=1e-12, abs=1e-18)


def test_other_schedules_and_the_data_order() -> None:
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    line = TextFAREConfig(lr=1.0, warmup_steps=2, lr_schedule="linear").rates(optimiser, 6)
    assert [line(step) for step in range(6)] == [0.5, 1, 1, 0.75, 0.5, 0.25]
    flat = TextFAREConfig(lr=1.0, warmup_steps=2, lr_schedule="constant_with_warmup").rates(optimiser, 6)
    assert [flat(step) for step in range(6)] == [0.5, 1, 1, 1, 1, 1]
    stream = batch_indices(7, 0, 21, seed=1)
    assert all(sorted(stream[i : i + 7]) == list(range(7)) for i in (0, 7, 14))
    assert stream[:7] != stream[7:14]
    assert batch_indices(7, 5, 6, seed=1) == stream[5:11]


def test_caption_files(tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("a cat\n\n  a café  \n", encoding="utf-8")
    assert read_captions(file) == ["a cat", "a café"]
    file.write_text(" \n")
    with pytest.raises(ValueError, match="no captions"):
        read_captions(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        read_captions(file)
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt"):
        read_captions(tmp_path / "nothing.txt")
    train, held = split_captions([f"caption {i}" for i in range(1000)] * 2, held_out=0.1)
    assert not set(train) & set(held)
    assert 50 < len(set(held)) < 150


@pytest.mark.parametrize(
    "wrong", [{"rho": 0}, {"slots": 0}, {"states_weight": -1.0}, {"lr": -1.0}, {"attack": "charmer"}, {"max_steps": 0}]
)
def test_wrong_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TextFAREConfig(**wrong)  # type: ignore[arg-type]


def test_too_few_captions(encoder: HFTextEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="captions"):
        finetune_text_encoder(encoder, [], tmp_path)
