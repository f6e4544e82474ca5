"""Image towers: the features of transformers and open_clip from pixels 0 to 1, by the model's own preprocessing."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel

from leaf_diffusion.encoders.convert_config import CLIP_MEAN
from leaf_diffusion.encoders.image_encoder import ImageEncoder, load_image_encoder, wrap_image_encoder
from leaf_diffusion.world.clip import clip_features
from leaf_diffusion.world.figures import real_images
from leaf_diffusion.world.scenes import pixels
from leaf_diffusion.world.sources import load_clip
from tests import tiny

IMAGES = [
    Image.fromarray(np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8))
    for i, shape in enumerate([(30, 20, 3), (16, 16, 3), (50, 17)])
]


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    return tiny.clip()


@pytest.fixture
def processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16}, image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.4], resample=2,
    )  # fmt: skip


@pytest.fixture
def folder(clip: CLIPModel, processor: CLIPImageProcessor, tmp_path: Path) -> Path:
    clip.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_features_are_those_of_transformers_with_its_own_processor(
    folder: Path, clip: CLIPModel, processor: CLIPImageProcessor
) -> None:
    encoder = load_image_encoder(folder)
    x = encoder.prepare(IMAGES)
    assert x.shape == (3, 3, 16, 16)
    assert float(x.min()) >= 0 and float(x.max()) <= 1
    theirs = processor([image.convert("RGB") for image in IMAGES], return_tensors="pt")
    with torch.no_grad():
        expected = clip.get_image_features(**theirs).pooler_output
    torch.testing.assert_close(encoder.features(x), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.embed(x, at_once=2), expected, atol=1e-5, rtol=1e-4)


def test_without_a_processor_it_is_clips_own_at_the_models_size(clip: CLIPModel, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path)
    encoder = load_image_encoder(tmp_path)
    assert tuple(encoder.preprocessing.mean) == CLIP_MEAN
    assert encoder.preprocessing.size == (16, 16)


def test_the_worlds_tower_is_the_clip_that_it_ships() -> None:
    encoder, images = load_image_encoder("world:original"), real_images(4)
    with torch.no_grad():
        expected = clip_features(load_clip()).images(pixels(images))
    torch.testing.assert_close(encoder.embed(encoder.prepare(images)), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="world:fare"):
        load_image_encoder("world:leaf")


def test_open_clip_is_preprocessed_and_embedded_as_it_does_itself() -> None:
    torch.manual_seed(0)
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}
    text = {"width": 16, "layers": 1, "heads": 2, "context_length": 77, "vocab_size": 100}
    model = open_clip.CLIP(embed_dim=12, vision_cfg=vision, text_cfg=text).eval()
    with pytest.raises(ValueError, match="preprocessed"):
        wrap_image_encoder(model)
    open_clip.model.set_model_preprocess_cfg(model, {"size": (16, 16), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)})
    encoder = wrap_image_encoder(model)
    transform = open_clip.image_transform(16, is_train=False, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    with torch.no_grad():
        expected = model.encode_image(torch.stack([transform(image.convert("RGB")) for image in IMAGES]))
    torch.testing.assert_close(encoder.embed(encoder.prepare(IMAGES)), expected, atol=1e-5, rtol=1e-4)


def test_gradients_reach_the_pixels(folder: Path) -> None:
    encoder = load_image_encoder(folder)
    x = encoder.prepare(IMAGES).double().requires_grad_()
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(encoder.features(x)[:, 0].sum(), x)
    with torch.no_grad():
        step = 1e-3
        ends = [float(encoder.features(x + sign * step * direction)[:, 0].sum()) for sign in (1, -1)]
    assert float((gradient * direction).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-2)


def test_the_fingerprint_is_that_of_the_image_half_and_its_preprocessing(
    folder: Path, clip: CLIPModel, processor: CLIPImageProcessor
) -> None:
    first = load_image_encoder(folder).fingerprint
    assert wrap_image_encoder(clip, processor).fingerprint == first
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.4, 0.5, 0.61]}))
    other = load_image_encoder(folder)
    assert other.fingerprint != first
    with torch.no_grad():
        other.module.visual_projection.weight[0, 0] += 1e-3
    assert other.fingerprint != load_image_encoder(folder).fingerprint


def test_what_cannot_serve_is_refused(folder: Path, tmp_path: Path) -> None:
    encoder = load_image_encoder(folder)
    with pytest.raises(ValueError, match="takes pixels"):
        encoder.features(torch.zeros(1, 3, 32, 32))
    assert encoder.prepare([]).shape == (0, 3, 16, 16)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_image_encoder(tmp_path / "nowhere")
    text = tiny.tower()
    text.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="clip_text_model"):
        load_image_encoder(tmp_path / "text")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"crop_size": {"height": 8, "width": 8}}))
    with pytest.raises(ValueError, match="the model takes 16 x 16"):
        load_image_encoder(folder)
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises((ValueError, FileNotFoundError), match=r"preprocessor_config|clip"):
        load_image_encoder(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights"):
        load_image_encoder(folder)
    with pytest.raises(ValueError, match="no image tower"):
        ImageEncoder(text, encoder.preprocessing, name="text")
    with pytest.raises(ValueError, match="revision"):
        load_image_encoder("world:original", revision="main")
