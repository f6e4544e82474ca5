"""Readers of single files, learnt tokens, names of classes, captioned images and the notes of a run, against spoiled files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextModel

from leaf_diffusion.encoders.single_file import load_single_file
from leaf_diffusion.evaluation.tasks.images import folder_images
from leaf_diffusion.finetune.images import Pairs, read_pairs
from leaf_diffusion.finetune.translate import read_tensors
from leaf_diffusion.images import read_image
from leaf_diffusion.reports.costs import read_swap_cost
from leaf_diffusion.runs import RunSpec
from leaf_diffusion.runs.progress import read_progress
from tests import tiny


def test_single_files(tmp_path: Path, fuzz: Any) -> None:
    tower = tiny.tower(
        CLIPTextModel, vocab_size=40, hidden_size=64, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=8, bos_token_id=38, eos_token_id=39, pad_token_id=39,
    )  # fmt: skip
    file = tmp_path / "clip_l.safetensors"
    save_file(tower.state_dict(), file)
    right = tower.state_dict()

    def read() -> None:
        found = load_single_file(file, None, torch.float32).state_dict()
        assert found.keys() == right.keys()
        assert all(found[key].shape == right[key].shape and found[key].isfinite().all() for key in right)

    fuzz.bytes(file, read, 60)


def test_learnt_tokens(tmp_path: Path, fuzz: Any) -> None:
    file = tmp_path / "token.safetensors"
    save_file({"emb_params": torch.randn(2, 8)}, file, metadata={"name": "<x>"})
    fuzz.bytes(file, lambda: read_tensors(file), 60)


def test_names_of_classes(tmp_path: Path, fuzz: Any) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / "0.png")
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"cat": "a cat", "dog": "a dog"}))

    def read() -> None:
        found = folder_images(tmp_path / "images", path, ["{}"])
        assert len(found.classes) == 2 and all(name.strip() for name in found.classes)

    fuzz.bytes(path, read, 60)
    fuzz.json(path, read, 60)


def test_captioned_images(tmp_path: Path, fuzz: Any) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(2):
        Image.new("RGB", (8, 8)).save(images / f"{i}.png")
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps({"image": f"{i}.png", "caption": f"a cat {i}"}) + "\n" for i in range(2)))

    def read() -> None:
        pairs: Pairs = read_pairs(path, images)
        assert pairs.names and all(pairs.caption(i) for i in range(len(pairs.names)))

    fuzz.bytes(path, read, 60)
    fuzz.json(path, read, 60)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_images_of_strangers(name: str, tmp_path: Path, fuzz: Any) -> None:
    path = tmp_path / name
    Image.effect_noise((16, 16), 50).convert("RGB").save(path)

    def read() -> None:
        found = read_image(path)
        assert found.mode == "RGB" and found.width and found.height

    fuzz.bytes(path, read, 60)


def test_notes_of_a_run(tmp_path: Path, fuzz: Any) -> None:
    path = tmp_path / "progress.json"
    noted = {
        "kind": "images",
        "started": "2026-01-01T00:00:00+00:00",
        "done": 1,
        "units": {"images": 3},
        "paces": {"images": 0.5},
    }
    path.write_text(json.dumps(noted))
    fuzz.bytes(path, lambda: read_progress(tmp_path), 60)
    fuzz.json(path, lambda: read_progress(tmp_path), 60)


def test_what_a_swap_costs(tmp_path: Path, fuzz: Any) -> None:
    row = {"encoder": "leaf", "baseline": None, "protocol": "clean", "source": None, "attack": None, "constraint": None,
           "k": 0, "metric": "drift", "mean": 0.5, "ci_low": 0.1, "ci_high": 0.9, "n": 3, "seeds": 1, "condition": "plain"}  # fmt: skip
    spec = RunSpec({"experiment": "swap-cost", "encoders": {"original": "aa", "leaf": "bb"}, "pipeline_weights": "cc"})
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_dict()))
    (tmp_path / "results.json").write_text(json.dumps({"rows": [row], "conditions": []}))
    for name in ("spec.json", "results.json"):
        fuzz.bytes(tmp_path / name, lambda: read_swap_cost(tmp_path), 40, tmp_path)
        fuzz.json(tmp_path / name, lambda: read_swap_cost(tmp_path), 40, tmp_path)
