"""Feature spaces: resizing against clean-fid's own numbers, the networks against their packages' own forward."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from transformers import Dinov2Config, Dinov2Model

from leaf_diffusion.metrics import frechet_distance
from leaf_diffusion.metrics.feature_spaces import Dinov2Space, InceptionSpace
from leaf_diffusion.metrics.resize import clean_resize

# what `cleanfid.resize.build_resizer("clean")` of clean-fid 0.1.35 made of the same images (Pillow 12.3, x86-64): the
# pixels at four places, mean, standard deviation, how many values are 0 and how many 255
CLEAN_FID = {
    (7, 5): (
        [[0.0, 41.292, 98.2921], [160.6391, 217.8395, 0.0], [243.0, 44.0, 101.0], [202.0031, 255.0, 0.0]],
        (127.83528449960322, 58.75916399908431, 2478, 756),
    ),
    (64, 64): (
        [[0.0, 42.5195, 99.5195], [249.0422, 82.2067, 83.4909], [143.0, 209.0, 113.0], [178.5605, 232.2067, 0.0]],
        (127.57461313470097, 60.11193157340471, 975, 1836),
    ),
    (400, 333): (
        [
            [19.8639, 78.454, 153.1157],
            [165.5487, 213.1578, 133.2328],
            [207.857, 140.3612, 67.6655],
            [123.4898, 180.4898, 241.7724],
        ],
        (127.4278456315193, 49.168522607735184, 132, 627),
    ),
}
PLACES = ((0, 0), (10, 150), (149, 149), (298, 298))


def drawn(height: int, width: int) -> Image.Image:
    y, x, c = np.mgrid[:height, :width, :3]
    return Image.fromarray(((x * x * 37 + y * 91 + x * y * 13 + c * 57) % 256).astype(np.uint8))


def noise(n: int, size: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(n)]


@pytest.fixture(scope="module")
def inception() -> FeatureExtractorInceptionV3:
    """The real architecture; weights that keep the features' size through all its layers."""
    where = "torch_fidelity.feature_extractor_inceptionv3"
    with (
        patch(f"{where}.load_state_dict_from_url"),  # would download
        patch.object(FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network


@pytest.mark.parametrize("shape", CLEAN_FID)
def test_resizing_gives_clean_fids_numbers(shape: tuple[int, int]) -> None:
    found = clean_resize(drawn(*shape), 299)
    pixels, (mean, std, zeros, full) = CLEAN_FID[shape]
    assert found.shape == (299, 299, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose([found[place] for place in PLACES], pixels, atol=2e-4)
    assert found.mean(dtype=np.float64) == pytest.approx(mean, abs=1e-6)
    assert found.std(dtype=np.float64) == pytest.approx(std, abs=1e-6)
    assert ((found == 0).sum(), (found == 255).sum()) == (zeros, full)


def test_resizing_is_neither_rounded_nor_aliased() -> None:
    assert (clean_resize(drawn(64, 64), 299) % 1 != 0).mean() > 0.5
    stripes = np.zeros((598, 598, 3), dtype=np.uint8)
    stripes[:, ::2] = 255  # twice too fine for 299 pixels: antialiased they are grey, and never a pattern
    assert clean_resize(Image.fromarray(stripes), 299)[:, 8:-8] == pytest.approx(127.5, abs=3)
    grey = clean_resize(Image.new("L", (40, 20), 77), 299)
    assert grey.shape == (299, 299, 3)
    assert (grey == 77).all()


def test_inception_is_the_packages_own_on_images_that_need_no_resizing(
    inception: FeatureExtractorInceptionV3,
) -> None:
    images = noise(3, 299)
    given = torch.stack([torch.tensor(np.asarray(image)).permute(2, 0, 1) for image in images])
    found = InceptionSpace(inception.state_dict()).encode_image(images)
    assert found.shape == (3, 2048)
    assert found.std() > 1e-3
    torch.testing.assert_close(found, inception(given)[0])


def test_inception_refuses_other_weights(inception: FeatureExtractorInceptionV3) -> None:
    state = inception.state_dict()
    del state["Mixed_6b.branch1x1.conv.weight"]
    with pytest.raises(ValueError, match=r"no weights of the FID's Inception v3.*Mixed_6b"):
        InceptionSpace(state)


def test_dinov2_gives_the_normed_class_token_of_normalised_images() -> None:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, hidden_act="gelu"
    )
    model = Dinov2Model(config).eval()
    images = noise(34, 224)  # more than a batch
    space = Dinov2Space(model, "tiny")
    found = space.encode_image(images)
    pixels = torch.stack([torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255 for image in images])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = model((pixels - mean) / std).pooler_output
    assert space.name == "tiny, clean-fid resizing"
    torch.testing.assert_close(found, expected)
    assert float(frechet_distance(found, found)) == pytest.approx(0, abs=1e-6)
    assert float(frechet_distance(found[:17], found[17:])) > 0
