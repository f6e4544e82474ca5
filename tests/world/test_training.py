import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from leaf_diffusion.finetune.spelling import N_VECTORS, spelling_features, spelt
from leaf_diffusion.tokens.tokenizer import clip_tokenizer
from leaf_diffusion.world.captions import ABOVE, AMONG, BESIDE, COLUMN, COUNT, LEFT, ROW, SINGLE
from leaf_diffusion.world.fit import fit
from leaf_diffusion.world.judge import SceneClassifier, labels, satisfies
from leaf_diffusion.world.robust import training_captions
from leaf_diffusion.world.scenes import COLOURS, NOUNS, SIZE, Scene, Thing, held_out, sample_scene
from leaf_diffusion.world.sources import EMBEDDING, apply_overlay, overlay

HELD = [templates["test"] for templates in (SINGLE, LEFT, ABOVE, BESIDE, ROW, COLUMN, AMONG, COUNT)]


class Interrupt(Exception):
    pass


def toy(folder: Path, stop: int | None = None, average: float = 0.9) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

    def loss(step: int, rng: random.Random) -> Tensor:
        if step == stop:
            raise Interrupt
        x = torch.randn(16, 4)
        return (model(x) - x.sum(1, keepdim=True) * rng.random()).square().mean()

    fit("toy", [model], loss, steps=30, lr=1e-2, seed=1, folder=folder, warmup=5, average=average)
    return [v.clone() for v in model.state_dict().values() if v.is_floating_point()]


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaf_diffusion.world.fit.CHECKPOINT_SECONDS", 0.0)
    whole = toy(tmp_path / "whole")
    with pytest.raises(Interrupt):
        toy(tmp_path / "cut", stop=17)
    resumed = toy(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_training_learns_and_averages(tmp_path: Path) -> None:
    averaged, plain = toy(tmp_path / "a"), toy(tmp_path / "b", average=0.0)
    assert not torch.equal(averaged[0], plain[0])


def test_overlay_restores_the_finetuned_tower_from_the_original() -> None:
    original = {EMBEDDING: torch.randn(49408, 4), "text_projection.weight": torch.randn(4, 4)}
    finetuned = {key: value.clone() for key, value in original.items()}
    finetuned[EMBEDDING][[300, 7000]] += 1
    finetuned["text_projection.weight"] += 1
    spelling = torch.randn(N_VECTORS + 1, 4)
    letters = torch.from_numpy(spelling_features(clip_tokenizer().get_vocab(), 49408))
    finetuned[EMBEDDING] += spelt(letters, spelling)
    parts = overlay(original, finetuned, spelling)
    assert parts[f"{EMBEDDING}.rows"].tolist() == [300, 7000]
    restored = apply_overlay(original, {key: value.float() for key, value in parts.items()})
    for key, value in finetuned.items():
        torch.testing.assert_close(restored[key], value, rtol=1e-2, atol=1e-2)  # float16, a dozen vectors a token


def test_labels_and_the_classifier_agree_in_shape() -> None:
    rng = random.Random(0)
    scenes = [sample_scene(rng, two=0.4, three=0.4) for _ in range(6)]
    target = labels(scenes)
    logits = SceneClassifier()(torch.zeros(6, 3, SIZE, SIZE))
    assert target.shape == (6, len(logits))
    assert all((target[:, i] < group.shape[1]).all() for i, group in enumerate(logits))


CAT, HAT, KEY = Thing("cat", "red"), Thing("hat", "blue"), Thing("key", "green")


@pytest.mark.parametrize(
    ("seen", "asked", "right"),
    [
        (Scene((CAT,), "gray"), Scene((CAT,), "pink"), True),
        (Scene((CAT,), "gray"), Scene((Thing("cat", None),), "gray"), True),
        (Scene((CAT,), "gray"), Scene((Thing("cat", "blue"),), "gray"), False),
        (Scene((CAT,), "gray"), Scene((Thing("bat", "red"),), "gray"), False),
        (Scene((CAT, HAT), "gray", "left"), Scene((CAT, HAT), "gray", "left"), True),
        (Scene((HAT, CAT), "gray", "left"), Scene((CAT, HAT), "gray", "left"), False),
        (Scene((CAT, HAT), "gray", "above"), Scene((CAT, HAT), "gray", "left"), False),
        (Scene((HAT, CAT), "gray", "above"), Scene((CAT, HAT), "gray", "beside"), True),
        (Scene((CAT,), "gray"), Scene((CAT, HAT), "gray", "beside"), False),
        (Scene((CAT, HAT), "gray", "left"), Scene((CAT,), "gray"), False),
        (Scene((CAT, HAT, KEY), "gray", "left"), Scene((CAT, HAT, KEY), "gray", "left"), True),
        (Scene((CAT, KEY, HAT), "gray", "left"), Scene((CAT, HAT, KEY), "gray", "left"), False),
        (Scene((KEY, CAT, HAT), "gray", "above"), Scene((CAT, HAT, KEY), "gray", "beside"), True),
        (Scene((CAT, CAT), "gray", "above"), Scene((CAT, CAT), "gray", "beside"), True),
        (Scene((CAT, CAT, CAT), "gray", "above"), Scene((CAT, CAT), "gray", "beside"), False),
        (Scene((CAT, CAT, HAT), "gray", "left"), Scene((CAT, CAT, CAT), "gray", "beside"), False),
    ],
)
def test_a_image_is_right_when_it_shows_what_was_asked_for(seen: Scene, asked: Scene, right: bool) -> None:
    assert satisfies(seen, asked) is right


def test_finetuning_captions_are_varied_and_never_those_of_the_evaluation() -> None:
    plain, varied = training_captions(3000), training_captions(3000, seed=12, varied=0.6)
    words = [{word for text in texts for word in text.split()} for texts in (plain, varied)]
    assert len(words[1]) > 3 * len(words[0])
    held = [
        re.compile(template.format(k="(two|three)", **dict.fromkeys(("c", "n", "b", "d", "m", "e", "o", "ns"), "\\w+")))
        for many in HELD
        for template in many
    ]
    pairs = {(n, c) for n in NOUNS for c in COLOURS if held_out(n, c)}
    for text in plain + varied:
        assert not any(template.fullmatch(text) for template in held), text
        said = set(zip(text.split(), text.split()[1:], strict=False))
        assert not {(n, c) for c, n in said} & pairs, text
    counts = Counter(noun for text in plain for noun in NOUNS if noun in text.split())
    assert counts["house"] > 2 * counts["mouse"] > 0  # the root of 513 : 20
    assert set(counts) == set(NOUNS)
    assert training_captions(3000) == plain
