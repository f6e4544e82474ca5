"""Both towers together: the pair loss by hand, robustness gained on both sides, resumed bit by bit, pairs from files."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from leaf_diffusion.cli.main import main
from leaf_diffusion.encoders.image_encoder import ImageEncoder, load_image_encoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.finetune.images import Loading, Pairs, read_pairs, split_pairs
from leaf_diffusion.finetune.joint import JointConfig, finetune_both, pair_loss

SETTINGS = JointConfig(rho=4, eps=8.0, attack_steps=2, batch_size=12, lr=1e-3, warmup_steps=2, max_steps=2,
                       checkpoint_every=2, eval_every=100)  # fmt: skip


class Interrupt(Exception):
    pass


@pytest.fixture(scope="module")
def pairs() -> tuple[Pairs, Pairs]:
    return split_pairs(read_pairs("world:120", None))


@pytest.fixture(scope="module")
def towers() -> tuple[Any, ImageEncoder]:
    return load_text_encoder("world:original"), load_image_encoder("world:original")


def train(towers: tuple[Any, ImageEncoder], pairs: tuple[Pairs, Pairs], folder: Path, steps: int, **more: Any) -> Path:
    on_log = more.pop("on_log", None)
    config = replace(SETTINGS, max_steps=steps, **more)
    return finetune_both(*towers, pairs[0], folder, config, held_out=pairs[1], on_log=on_log)


def test_the_pair_loss_is_zero_for_the_originals_and_a_divergence_otherwise() -> None:
    torch.manual_seed(0)
    texts, images, others = (torch.randn(5, 8) for _ in range(3))
    assert float(pair_loss(texts, images, texts, images, 0.07)) == pytest.approx(0, abs=1e-5)
    assert float(pair_loss(3 * texts, images, texts, 2 * images, 0.07)) == pytest.approx(0, abs=1e-5)
    cosines = torch.nn.functional.cosine_similarity(texts[:, None], images[None], dim=-1) / 0.5
    moved = torch.nn.functional.cosine_similarity(others[:, None], images[None], dim=-1) / 0.5
    divergences = []
    for wanted, found in ((cosines, moved), (cosines.T, moved.T)):
        p, q = wanted.softmax(-1), found.softmax(-1)
        divergences.append(float((p * (p.log() - q.log())).sum(-1).mean()))
    assert float(pair_loss(others, images, texts, images, 0.5)) == pytest.approx(sum(divergences) / 2, rel=1e-4)


@pytest.mark.slow
def test_a_training_that_was_broken_off_ends_where_the_other_did(
    towers: tuple[Any, ImageEncoder], pairs: tuple[Pairs, Pairs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(towers, pairs, tmp_path / "whole", 5)
    from leaf_diffusion.finetune import joint

    calls, attack = [0], joint.attack_captions

    def broken(*args: Any, **kwargs: Any) -> list[str]:
        calls[0] += 1
        if calls[0] == 5:  # the first is the measurement before
            raise Interrupt
        return attack(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(joint, "attack_captions", broken)
        with pytest.raises(Interrupt):
            train(towers, pairs, tmp_path / "cut", 5)
    assert (tmp_path / "cut" / "checkpoint" / "state.safetensors").exists()
    again = train(towers, pairs, tmp_path / "cut", 5)
    for part in ("text", "image"):
        expected, found = (load_file(folder / part / "model.safetensors") for folder in (whole, again))
        assert expected and all(torch.equal(value, found[key]) for key, value in expected.items())
    assert not (tmp_path / "cut" / "checkpoint").exists()
    with pytest.raises(ValueError, match="other settings"):
        train(towers, pairs, tmp_path / "cut", 6)


def test_it_has_what_the_shared_loop_gives(
    towers: tuple[Any, ImageEncoder], pairs: tuple[Pairs, Pairs], tmp_path: Path
) -> None:
    rows: list[dict[str, float]] = []
    settings = {"mixed_precision": "bf16", "accumulation": 2, "batch_size": 6, "save_dtype": "float16"}
    folder = train(towers, pairs, tmp_path, 4, on_log=rows.append, clean_floor=1.0, eval_every=2, **settings)
    assert {value.dtype for value in load_file(folder / "text" / "model.safetensors").values()} == {torch.float16}
    assert [row["step"] for row in rows] == [0, 2]  # some pair is lost at once, so the floor stops it
    assert "Training stopped at step 2" in (folder / "image" / "README.md").read_text()


def test_the_folders_load_and_the_card_has_the_figures(
    towers: tuple[Any, ImageEncoder], pairs: tuple[Pairs, Pairs], tmp_path: Path
) -> None:
    rows: list[dict[str, float]] = []
    folder = train(towers, pairs, tmp_path / "run", 2, on_log=rows.append)
    state = json.loads((folder / "finetune.json").read_text())
    assert state["finished"] and state["after"] == {k: v for k, v in rows[-1].items() if k in state["after"]}
    assert {"recall_clean", "recall_text", "recall_image", "recall_both"} < state["before"].keys()
    text, image = load_text_encoder(folder / "text"), load_image_encoder(str(folder / "image"))
    assert text.fingerprint != towers[0].fingerprint and image.fingerprint != towers[1].fingerprint
    for part in ("text", "image"):
        card = (folder / part / "README.md").read_text()
        assert f"| both attacked | {state['before']['recall_both']:.3f} | {state['after']['recall_both']:.3f} |" in card


def test_pairs_of_a_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    lines = [{"image": "a.png", "caption": "a red thing"}, {"image": "a.png", "caption": "again"},
             {"image": "b.png", "caption": "another"}]  # fmt: skip
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = read_pairs(tmp_path / "c.jsonl", tmp_path)
    assert [(name, found.caption(i)) for i, name in enumerate(found.names)] == [
        ("a.png", "a red thing"), ("b.png", "another")
    ]  # fmt: skip
    some, rest = split_pairs(found)
    assert len(some.names) == len(rest.names) == 1
    assert found.caption(list(found.names).index(rest.names[0])) == rest.caption(0)
    for line, said in (
        ({"image": "../x.png", "caption": "x"}, "is not in"),
        ({"image": "none.png", "caption": "x"}, "is not in"),
        ({"caption": "x"}, "which image"),
    ):
        (tmp_path / "bad.jsonl").write_text(json.dumps(line))
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            read_pairs(tmp_path / "bad.jsonl", tmp_path)
    with pytest.raises(ValueError, match="--images"):
        read_pairs(tmp_path / "c.jsonl", None)


def test_pairs_of_an_unreadable_image_are_left_out_counted_and_told(
    towers: tuple[Any, ImageEncoder], tmp_path: Path
) -> None:
    lines = [{"image": f"{i}.png", "caption": f"thing {i}"} for i in range(6)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:40])
    (tmp_path / "4.png").write_text("no image")
    found = read_pairs(tmp_path / "c.jsonl", tmp_path)
    with ThreadPoolExecutor(2) as threads:
        loading = Loading(threads)
        with pytest.warns(UserWarning, match=r"3\.png") as told:
            captions, images = loading.pairs(found, [5, 3, 4, 0])
        loading.pairs(found, [0, 3])  # neither told nor counted again
        assert (captions, [image.getpixel((0, 0)) for image in images]) == (
            ["thing 5", "thing 0"],
            [(200, 0, 0), (0, 0, 0)],
        )
        assert len(told) == 1 and loading.notes() == {"unreadable": 2}
        with pytest.raises(ValueError, match=r"none of 2 images can be read, such as 3\.png"):
            loading.images(found, [3, 4])
    rows: list[dict[str, float]] = []
    with pytest.warns(UserWarning, match="left out"):
        train(towers, (found, read_pairs("world:4", None)), tmp_path / "out", 3, on_log=rows.append, batch_size=6)
    assert rows[-1]["unreadable"] == 2


def test_the_worlds_captions_describe_its_images() -> None:
    pairs = read_pairs("world:5", None)
    assert len({pairs.caption(i) for i in range(5)}) == 5
    assert pairs.caption(2) == read_pairs("world:9", None).caption(2)


@pytest.mark.parametrize(
    ("named", "make"),
    [
        ("eps", partial(JointConfig, eps=0.0)),
        ("pair_weight", partial(JointConfig, pair_weight=-1.0)),
        ("warmup_steps", partial(JointConfig, warmup_steps=5, max_steps=1)),
        ("rho", partial(JointConfig, rho=0)),
    ],
)
def test_settings_that_cannot_serve(named: str, make: Callable[[], JointConfig]) -> None:
    with pytest.raises(ValueError, match=named):
        make()


def test_the_command_and_its_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "finetune-both --source world:original --pairs world:40 --max-steps 1 --warmup-steps 0 --batch-size 4 --rho 2"
    )
    assert main([*words.split(), "--attack-steps", "1", "--output", str(tmp_path / "out")]) == 0
    assert "36 pairs, 4 held out" in capsys.readouterr().out
    assert (tmp_path / "out" / "image" / "preprocessor_config.json").exists()
    assert (
        main(["finetune-both", "--source", "world:judge", "--pairs", "world:40", "--output", str(tmp_path / "no")]) == 2
    )
    assert not (tmp_path / "no").exists()
