"""A Stable Diffusion 1.5 and a ViT-L/14 in their real shapes, with random weights: what is asked of them is said before the
work, and the work itself goes through."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from leaf_diffusion.eval import t2i_robustness
from leaf_diffusion.tokens.tokenizer import clip_tokenizer

pytestmark = pytest.mark.slow
TEXT = CLIPTextConfig(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768,
    vocab_size=49408, hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=2, pad_token_id=1,
)  # fmt: skip
"""openai/clip-vit-large-patch14's text half, legacy pooling included."""


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd15") / "pipeline"
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # half the memory while it is made
    try:
        unet = UNet2DConditionModel(
            sample_size=64, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, cross_attention_dim=768,
            attention_head_dim=8,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        text = CLIPTextModel(TEXT)
    finally:
        torch.set_default_dtype(before)
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=clip_tokenizer(), unet=unet, scheduler=DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def robust(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit-l") / "encoder"
    torch.manual_seed(1)
    CLIPTextModelWithProjection(TEXT).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return folder


def test_a_dry_run_says_sizes_work_and_time_and_the_run_goes_through(
    stable_diffusion: Path, robust: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a red umbrella on a beach\na photo of a cat\n")
    words = ["--pipeline", str(stable_diffusion), "--encoders", "original", f"robust={robust}", "--dtype", "bfloat16",
             "--prompts", str(tmp_path / "prompts.txt"), "--height", "64", "--width", "64", "--steps", "1",
             "--attack", "leaf", "--k", "1", "--protocols", "adaptive", "--output", str(tmp_path / "run")]  # fmt: skip
    assert t2i_robustness.main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    for part, millions in (("unet", 859.5), ("vae", 83.7), ("encoder original", 123.1), ("encoder robust", 123.7)):
        found = re.search(rf"{part} +\S+ +([\d.]+) M", said)
        assert found and float(found[1]) == pytest.approx(millions, abs=0.1), said
    assert re.search(r"attacks +4 +2 in", said) and "MiB that this machine has" in said.replace("\n", " ")
    assert t2i_robustness.main(words) == 0
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    drift = [row for row in rows if (row["metric"], row["protocol"], row["baseline"]) == ("drift", "adaptive", None)]
    assert {row["encoder"] for row in drift} == {"original", "robust"}
    assert all(row["mean"] > 0 and row["n"] == 2 for row in drift)
