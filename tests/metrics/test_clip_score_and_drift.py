import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.multimodal import clip_score as reference

from leaf_diffusion.metrics import clip_score, clip_score_from_features, clip_scores, feature_drift, pixel_rmse

PROJECTION = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
LETTERS = torch.randn(128, 6, generator=torch.Generator().manual_seed(1))


def embed_text(text: str) -> torch.Tensor:
    return sum((LETTERS[ord(c)] for c in text), torch.zeros(6)) + PROJECTION[: len(text)].sum(0)


class Fake:
    """A tiny two-tower model with our interface."""

    def encode_image(self, images: list[Image.Image]) -> torch.Tensor:
        return torch.stack([torch.tensor(np.asarray(i), dtype=torch.float32).flatten() for i in images]) @ PROJECTION

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return torch.stack([embed_text(text) for text in texts])


class Hooked(torch.nn.Module):
    """The same model as torchmetrics calls it."""

    config = type("Config", (), {"text_config": type("Text", (), {"max_position_embeddings": 77})})

    def __init__(self) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    @property
    def device(self) -> torch.device:
        return self.anchor.device

    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1) @ PROJECTION

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        rows = zip(input_ids, attention_mask, strict=True)
        return torch.stack([embed_text("".join(map(chr, ids[mask.bool()].tolist()))) for ids, mask in rows])


def processor(
    text: list[str] | None = None, images: list[torch.Tensor] | None = None, return_tensors: str = "pt", padding: bool = True,
    **_: object,
) -> dict[str, torch.Tensor]:  # fmt: skip
    if images is not None:
        return {"pixel_values": torch.stack([image.permute(1, 2, 0).float() for image in images])}
    assert text is not None
    width = max(map(len, text))
    ids = torch.tensor([[ord(c) for c in t.ljust(width)] for t in text])
    mask = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in text])
    return {"input_ids": ids, "attention_mask": mask}


def images(n: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)) for _ in range(n)]


def test_clip_score_is_torchmetrics() -> None:
    drawn, texts = images(7), ["a cat", "a hat", "two red boats", "x", "a key", "house", "mouse"]
    tensors = [torch.tensor(np.asarray(image)).permute(2, 0, 1) for image in drawn]
    for flip in (1, -1):  # the mean is clamped, single values are not
        PROJECTION.mul_(flip)
        expected = reference(tensors, texts, model_name_or_path=lambda: (Hooked(), processor))
        assert clip_score(drawn, texts, Fake(), batch_size=3) == pytest.approx(float(expected), abs=1e-4)
    PROJECTION.mul_(-1)
    single = clip_scores(drawn, texts, Fake(), batch_size=2)
    assert single == pytest.approx(clip_scores(drawn, texts, Fake()))
    assert min(single) < 0 < max(single)


def test_clip_score_of_vectors_and_wrong_input() -> None:
    assert clip_score_from_features(torch.tensor([3.0, 0]), torch.tensor([1.0, 1])) == pytest.approx(100 / 2**0.5)
    with pytest.raises(ValueError, match="2 images, 1 captions"):
        clip_scores(images(2), ["one"], Fake())
    with pytest.raises(ValueError, match="no images"):
        clip_score([], [], Fake())


def test_drift() -> None:
    black, grey = Image.new("RGB", (4, 4)), Image.new("L", (4, 4), 51)
    assert pixel_rmse(black, grey) == pytest.approx(0.2)
    assert pixel_rmse(grey, grey) == 0
    half = black.copy()
    half.paste((255, 255, 255), (0, 0, 2, 4))
    assert pixel_rmse(black, half) == pytest.approx(0.5**0.5)
    with pytest.raises(ValueError, match="size"):
        pixel_rmse(black, Image.new("RGB", (5, 4)))
    assert feature_drift(torch.tensor([1.0, 0]), torch.tensor([0, 2.0])) == pytest.approx(1)
    assert feature_drift(torch.tensor([1.0, 0]), torch.tensor([-3.0, 0])) == pytest.approx(2)
    for row in torch.randn(200, 17, generator=torch.Generator().manual_seed(0)):  # rounding must not show as drift
        assert 0 <= feature_drift(row, 3 * row) < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_no_figure(value: float) -> None:
    broken, whole = torch.tensor([1.0, value]), torch.tensor([1.0, 2.0])
    for pair in ((broken, whole), (whole, broken)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            feature_drift(*pair)
        with pytest.raises(ValueError, match="NaN or infinity"):
            clip_score_from_features(*pair)
