"""An untrained world on disk: the real loaders, files and classes, random weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from markupsafe import escape
from safetensors.torch import save_file
from transformers import CLIPTextModel

from leaf_diffusion.finetune.spelling import N_VECTORS
from leaf_diffusion.metrics.bounds import attack_note
from leaf_diffusion.tokens.tokenizer import clip_tokenizer
from leaf_diffusion.world import build, paths, sources
from leaf_diffusion.world.clip import new_clip, new_judge
from leaf_diffusion.world.diffusion import new_unet, new_vae, scheduler
from leaf_diffusion.world.judge import SceneClassifier, SceneJudge
from leaf_diffusion.world.judge_clip import load_judge_clip

Declared = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="session")
def declared() -> Declared:
    """declared(run) -> the row of its main comparison, which stands in specification, results and page."""

    def find(folder: Path) -> dict[str, Any]:
        said = json.loads((folder / "spec.json").read_text())["settings"]["main_comparison"]
        rows = json.loads((folder / "results.json").read_text())["rows"]
        (row,) = (row for row in rows if row.get("main"))
        assert {name: row[name] for name in said} == said
        assert all("p_adjusted" in each for each in rows if each["baseline"] is not None)
        page = (folder / "report.html").read_text()
        assert "ain comparison, declared before the run" in page
        attacked = any(each["protocol"] == "adaptive" for each in rows)
        assert (escape(attack_note([False])[:60]) in page) == attacked
        return row

    return find


@pytest.fixture(scope="session")
def untrained_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part of the world with random weights."""
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(paths.VARIABLE, str(root))
        _forget()
        torch.manual_seed(0)
        clip = new_clip()
        state = build.halves(clip.state_dict())
        save_file(
            {k: v for k, v in state.items() if not k.startswith("text_model.")},
            build.target("clip") / "model.safetensors",
        )
        (build.target("clip") / "seen_tokens.json").write_text(json.dumps(list(range(0, 49408, 2))))
        save_file(build.halves(SceneClassifier().state_dict()), build.target("scene-judge") / "model.safetensors")
        judge = {k: v for k, v in new_judge().state_dict().items() if k != "attn_mask"}
        save_file(build.halves(judge), build.target("judge-clip") / "model.safetensors")
        pipeline = build.target("stable-diffusion")
        text = CLIPTextModel(clip.config.text_config)
        text.load_state_dict(build._for_text_model(text, clip.state_dict()))
        parts = {"text_encoder": text, "vae": new_vae(), "unet": new_unet()}
        for name, model in parts.items():
            build.save_stock(model, pipeline / name)
        clip_tokenizer().save_pretrained(pipeline / "tokenizer")
        scheduler().save_pretrained(pipeline / "scheduler")
        build.assemble(pipeline).save_config(pipeline)
        original = sources.load_world_encoder("original")[0].state_dict()
        for i, name in enumerate(sources.FINETUNED):
            moved = {key: value + 0.02 * (i + 1) * torch.randn(value.shape) for key, value in original.items()}
            moved[sources.EMBEDDING] = original[sources.EMBEDDING].clone()
            moved[sources.EMBEDDING][300:400] += 0.1
            spelling = torch.zeros(N_VECTORS + 1, moved[sources.EMBEDDING].shape[1])
            save_file(
                sources.overlay(original, moved, spelling), build.target(f"encoders/{name}") / "overlay.safetensors"
            )
        fare = {
            key: value + 0.02 * torch.randn(value.shape)
            for key, value in sources.image_tower(clip).state_dict().items()
        }
        save_file(build.halves(fare), build.target("fare") / "model.safetensors")
    _forget()
    return root


@pytest.fixture(scope="module", autouse=True)
def untrained_world(untrained_parts: Path) -> Iterator[Path]:
    """The untrained world in place of the shipped one; other modules of the same process get theirs back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(paths.VARIABLE, str(untrained_parts))
        _forget()
        yield untrained_parts
    _forget()


def _forget() -> None:
    load_judge_clip.cache_clear()
    SceneJudge.load.cache_clear()
    sources.seen_tokens.cache_clear()
