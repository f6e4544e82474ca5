"""FARE: it makes a tower robust, continues where it was broken off, and its folder is a plain Hugging Face one."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection

from leaf_diffusion.attacks.images import APGD, FeatureDrift
from leaf_diffusion.cli import finetune_image
from leaf_diffusion.encoders.convert_config import image_processor
from leaf_diffusion.encoders.image_encoder import (
    ImageEncoder,
    load_image_encoder,
    wrap_image_encoder,
)
from leaf_diffusion.finetune.fare import FAREConfig, finetune_image_encoder, image_figures
from leaf_diffusion.finetune.images import read_images, split_images
from leaf_diffusion.images import ImageFolder
from tests import tiny

CONFIG = FAREConfig(
    eps=8, attack_steps=3, batch_size=8, max_steps=40, lr=3e-3, warmup_steps=4, checkpoint_every=5, eval_every=40
)


class Drawn:
    """Random images of a few colours, where neighbouring pixels are alike."""

    def __init__(self, n: int, seed: int) -> None:
        self.names: Sequence[str] = [f"{seed}/{i}" for i in range(n)]

    def load(self, i: int) -> Image.Image:
        generator = torch.Generator().manual_seed(1000 * len(self.names) + i)
        small = torch.rand(3, 3, 3, generator=generator).mul(255).byte().numpy()
        return Image.fromarray(small).resize((16, 16), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    sizes = tiny.WIDER | {"patch_size": 4, "initializer_range": 0.1}
    tower = tiny.image_tower(**sizes).requires_grad_(False)
    with torch.no_grad():  # a tower that single pixels move: as fresh it would be smooth
        tower.vision_model.embeddings.patch_embedding.weight.mul_(8)
    return wrap_image_encoder(tower, image_processor(16), name="tiny")


@pytest.fixture(scope="module")
def finished(encoder: ImageEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fare") / "tower"
    return finetune_image_encoder(encoder, Drawn(64, 0), folder, CONFIG, held_out=Drawn(24, 1))


def test_features_move_less_under_attack_and_stay_near_when_clean(encoder: ImageEncoder, finished: Path) -> None:
    trained, images = load_image_encoder(finished), Drawn(20, 2)
    pixels = encoder.prepare([images.load(i) for i in range(20)])
    targets = encoder.embed(pixels)

    def drift(tower: ImageEncoder) -> float:
        attack = APGD(eps=CONFIG.eps / 255, steps=20)
        return float(
            attack(pixels, FeatureDrift(tower.features, targets)).score.mean() / targets.square().sum(-1).mean()
        )

    assert drift(trained) < 0.7 * drift(encoder)
    state = json.loads((finished / "finetune.json").read_text())
    assert state["finished"] and state["after"]["drift_apgd"] < 0.7 * state["before"]["drift_apgd"]
    assert state["before"]["drift_clean"] == pytest.approx(0, abs=1e-6)
    assert state["before"]["accuracy_clean"] == 1.0
    assert state["before"]["drift_noise"] < state["before"]["drift_apgd"]


def test_the_folder_is_what_transformers_loads(finished: Path, encoder: ImageEncoder) -> None:
    plain = CLIPVisionModelWithProjection.from_pretrained(finished).eval()
    mine = load_image_encoder(finished)
    assert mine.preprocessing.description == encoder.preprocessing.description
    x = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (mine.preprocessing.mean, mine.preprocessing.std))
    with torch.no_grad():
        torch.testing.assert_close(mine.features(x), plain((x - mean) / std).image_embeds, atol=1e-5, rtol=1e-4)
    card = (finished / "README.md").read_text()
    assert "up to 8/255" in card and "| APGD |" in card
    assert not (finished / "checkpoint").exists()
    rows = [json.loads(line) for line in (finished / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 10, 20, 30, 40]
    assert rows[-1]["loss"] < rows[1]["loss"]


class Stop(Exception):
    pass


def test_a_training_that_was_broken_off_ends_where_the_other_did(
    encoder: ImageEncoder, finished: Path, tmp_path: Path
) -> None:
    def stop(row: dict[str, float]) -> None:
        if row["step"] == 20:
            raise Stop

    arguments = (encoder, Drawn(64, 0), tmp_path, CONFIG)
    with pytest.raises(Stop):
        finetune_image_encoder(*arguments, held_out=Drawn(24, 1), on_log=stop)
    assert not (tmp_path / "model.safetensors").exists()
    steps: list[float] = []
    finetune_image_encoder(*arguments, held_out=Drawn(24, 1), on_log=lambda row: steps.append(row["step"]))
    assert steps == [20, 30, 40]  # it went on from the checkpoint of step 15
    whole, broken = (load_file(folder / "model.safetensors") for folder in (finished, tmp_path))
    for name, value in whole.items():
        torch.testing.assert_close(broken[name], value)
    changed = FAREConfig(**{**CONFIG.__dict__, "eps": 4})
    with pytest.raises(ValueError, match="eps"):
        finetune_image_encoder(encoder, Drawn(64, 0), tmp_path, changed, held_out=Drawn(24, 1))


def test_figures_by_hand(encoder: ImageEncoder) -> None:
    images = Drawn(5, 3)
    pixels = encoder.prepare([images.load(i) for i in range(5)])
    targets = encoder.embed(pixels)
    moved = targets.roll(1, 0)
    figures = image_figures(encoder, pixels, moved, CONFIG)
    expected = (targets - moved).square().sum(1).mean() / moved.square().sum(1).mean()
    assert figures["drift_clean"] == pytest.approx(float(expected), rel=1e-4)
    assert figures["accuracy_clean"] == 0.0


def test_images_of_a_folder(tmp_path: Path, encoder: ImageEncoder) -> None:
    for i in range(4):
        (tmp_path / "in" / str(i)).mkdir(parents=True)
        Drawn(4, 4).load(i).save(tmp_path / "in" / str(i) / "A.PNG")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8 half an image")
    found = read_images(tmp_path / "in")
    assert list(found.names) == ["0/A.PNG", "1/A.PNG", "2/A.PNG", "3/A.PNG", "broken.jpg"]
    with pytest.raises(OSError, match=r"broken\.jpg"):
        found.load(4)
    config = FAREConfig(eps=2, attack_steps=1, batch_size=5, max_steps=1, warmup_steps=1)
    with pytest.warns(UserWarning, match=r"broken\.jpg is no .*training_log\.jsonl counts them"):
        folder = finetune_image_encoder(encoder, found, tmp_path / "out", config, held_out=Drawn(2, 5))
    assert json.loads((folder / "training_log.jsonl").read_text().splitlines()[-1])["unreadable"] == 1
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        ImageFolder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="world:N"):
        read_images("world:many")


def test_the_split_follows_from_names_alone() -> None:
    kept, out = split_images(Drawn(50, 6))
    assert len(out.names) == 5 and not set(kept.names) & set(out.names)
    assert len(kept.names) + len(out.names) == 50
    with pytest.raises(ValueError, match="at least 2"):
        split_images(Drawn(1, 6))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eps": 0}, "eps"),
        ({"eps": 300}, "255"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_steps": 5, "warmup_steps": 6}, "warmup_steps=6"),
        ({"save_dtype": "int8"}, "save_dtype"),
        ({"lr": float("nan")}, "lr"),
        ({"weight_decay": -1}, "weight_decay"),
    ],
)
def test_settings_that_cannot_serve(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FAREConfig(**settings)  # type: ignore[arg-type]


def test_the_command_on_the_worlds_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--source",
        "world:original",
        "--images",
        "world:24",
        "--held-out",
        "world:3",
        "--output",
        str(tmp_path / "t"),
    ]
    words += ["--batch-size", "4", "--max-steps", "1", "--warmup-steps", "1", "--attack-steps", "1", "--device", "cpu"]
    assert finetune_image.main(words) == 0
    assert "finetuned tower" in capsys.readouterr().out
    assert load_image_encoder(tmp_path / "t").preprocessing.size == (64, 64)


def test_a_tower_of_open_clip_is_refused(tmp_path: Path) -> None:
    import open_clip

    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    text = {"width": 16, "layers": 1, "heads": 2, "context_length": 77, "vocab_size": 100}
    model = open_clip.CLIP(embed_dim=12, vision_cfg=vision, text_cfg=text)
    open_clip.model.set_model_preprocess_cfg(model, {"size": 16, "mean": (0.5,) * 3, "std": (0.5,) * 3})
    tower = wrap_image_encoder(model)
    with pytest.raises(ValueError, match="transformers"):
        finetune_image_encoder(tower, Drawn(8, 0), tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_end_where_one_does(encoder: ImageEncoder, tmp_path: Path) -> None:
    encoder.module.save_pretrained(tmp_path / "tiny")
    assert encoder.processor is not None
    encoder.processor.save_pretrained(tmp_path / "tiny")
    (tmp_path / "images").mkdir()
    for i in range(12):
        Drawn(12, 7).load(i).save(tmp_path / "images" / f"{i:02}.png")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "leaf_diffusion.cli.finetune_image", "--source", str(tmp_path / "tiny"), "--device", "cpu"]
    command += ["--images", str(tmp_path / "images"), "--output", str(tmp_path / "two"), "--batch-size", "3"]
    command += ["--max-steps", "2", "--warmup-steps", "1", "--attack-steps", "2", "--lr", "1e-3"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    config = FAREConfig(batch_size=6, max_steps=2, warmup_steps=1, attack_steps=2, lr=1e-3)
    start = load_image_encoder(tmp_path / "tiny")
    one = finetune_image_encoder(start, ImageFolder(tmp_path / "images"), tmp_path / "one", config)
    first, second = load_file(one / "model.safetensors"), load_file(tmp_path / "two" / "model.safetensors")
    # keys' biases move nothing, so their direction is rounding
    before = {key: value for key, value in start.module.state_dict().items() if "k_proj.bias" not in key}
    moved = sum(float((first[key] - value).square().sum()) for key, value in before.items())
    assert sum(float((first[key] - second[key]).square().sum()) for key in before) < 1e-3 * moved
    assert finetune_image_encoder(start, ImageFolder(tmp_path / "images"), tmp_path / "two", config) == tmp_path / "two"
