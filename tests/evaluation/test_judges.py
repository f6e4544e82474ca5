"""A judge is a whole CLIP of its own, or is refused before it measures anything."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTextModelWithProjection

from leaf_diffusion.evaluation.t2i.judges import OpenCLIPJudge
from tests import tiny

TEXTS = ["a red cat", "cat " * 90, "a dog"]
IMAGES = [Image.new("RGB", (40, 44), (40 * i, 10, 200 - 40 * i)) for i in range(3)]


@pytest.fixture
def clip() -> CLIPModel:
    return tiny.clip()


@pytest.fixture
def folder(clip: CLIPModel, tmp_path: Path) -> Path:
    clip.save_pretrained(tmp_path)
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(image_processor=processor, tokenizer=tiny.TOKENIZER).save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def test_a_folder_of_transformers_measures_as_transformers_does(clip: CLIPModel, folder: Path) -> None:
    judge, processor = OpenCLIPJudge(str(folder), "cpu"), CLIPProcessor.from_pretrained(folder)
    given = processor(text=TEXTS, images=IMAGES, padding=True, truncation=True, return_tensors="pt")
    wanted = clip(**given)
    images, texts = judge.encode_image(IMAGES), judge.encode_text(TEXTS)
    torch.testing.assert_close(torch.nn.functional.normalize(images), wanted.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.nn.functional.normalize(texts), wanted.text_embeds, atol=1e-5, rtol=0)


def lose(part: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(state: dict[str, torch.Tensor]) -> None:
        for key in [key for key in state if part in key]:
            del state[key]

    return edit


def spoil(state: dict[str, torch.Tensor]) -> None:
    state["visual_projection.weight"][0, 0] = torch.inf


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lose("vision_model.encoder.layers.1"), r"missing, such as vision_model\.encoder\.layers\.1"),
        (lose("visual_projection"), "missing, such as visual_projection"),
        (lose("text_projection"), "missing, such as text_projection"),
        (spoil, "'visual_projection.weight' holds NaN or infinity"),
    ],
)
def test_lost_and_broken_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None], said: str) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=said):
        OpenCLIPJudge(str(folder), "cpu")


def test_half_a_clip_is_no_judge(clip: CLIPModel, tmp_path: Path) -> None:
    CLIPTextModelWithProjection(clip.config.text_config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no CLIP with an image tower"):
        OpenCLIPJudge(str(tmp_path), "cpu")
