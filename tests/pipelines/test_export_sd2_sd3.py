"""Whole checkpoints of Stable Diffusion 2 and 3 with another text encoder, read back by diffusers' single-file loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, PreTrainedModel

from leaf_diffusion.cli.main import main as cli
from leaf_diffusion.encoders.convert import to_open_clip
from leaf_diffusion.tokens.tokenizer import clip_tokenizer

if TYPE_CHECKING:
    from tests.pipelines.conftest import Kind

BLOCKS = 24
"""Of SD2's OpenCLIP ViT-H: diffusers knows the last one, which nobody runs, by its number 23."""


def save(module: torch.nn.Module, folder: Path) -> str:
    module.save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return str(folder)


def export(encoder: str, output: Path, checkpoint: Path, *more: str) -> set[str]:
    before = load_file(checkpoint)
    assert cli(["export", encoder, str(output), "--checkpoint", str(checkpoint), *more]) == 0
    after = load_file(output)
    assert before.keys() == after.keys()
    return {key for key in before if not torch.equal(before[key], after[key])}


@dataclass(frozen=True)
class SD2:
    """Stable Diffusion 2: its components, a tower of a seed, and what diffusers makes of that tower."""

    kind: Kind
    parts: dict[str, object]
    tower: Callable[[int], PreTrainedModel]
    read: Callable[[int], CLIPTextModel]


@pytest.fixture
def sd2(
    kinds: dict[str, Kind],
    single_file: Callable[[Kind, Mapping[str, object]], dict[str, torch.Tensor]],
    new_tower: Callable[..., PreTrainedModel],
    tmp_path: Path,
) -> SD2:
    """A whole checkpoint in SD2's layout, the folder of its pipeline, and the parts of that."""

    def tower(seed: int, blocks: int = BLOCKS) -> PreTrainedModel:
        return new_tower(seed=seed, num_hidden_layers=blocks, intermediate_size=8, hidden_act="gelu")

    def read(seed: int) -> CLIPTextModel:
        """What diffusers makes of a tower of 24 blocks: 23, without the projection."""
        weights = tower(seed).text_model.state_dict()
        shorter = tower(seed, BLOCKS - 1).text_model
        shorter.load_state_dict({key: value for key, value in weights.items() if ".layers.23." not in key})
        config = tower(seed, BLOCKS - 1).config
        alone = CLIPTextModel(config).eval().requires_grad_(False)
        inner = getattr(alone, "text_model", alone)
        inner.load_state_dict(shorter.state_dict())
        return alone

    kind = kinds["sd"]
    parts = kind.parts() | {"text_encoder": read(1)}
    StableDiffusionPipeline(**parts).save_pretrained(tmp_path / "folder")
    tensors = {k: v for k, v in single_file(kind, kind.parts()).items() if not k.startswith("cond_stage_model.")}
    tensors |= {f"cond_stage_model.model.{key}": value for key, value in to_open_clip(tower(1).state_dict()).items()}
    tensors["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "sd2.safetensors")
    return SD2(kind, parts, tower, read)


@pytest.mark.parametrize("blocks", [BLOCKS, BLOCKS - 1], ids=["open-clip", "diffusers"])
def test_stable_diffusion_2(sd2: SD2, tmp_path: Path, blocks: int) -> None:
    kind, parts = sd2.kind, sd2.parts
    new = sd2.tower(2) if blocks == BLOCKS else sd2.read(2)
    output = tmp_path / "robust.safetensors"
    changed = export(save(new, tmp_path / "robust"), output, tmp_path / "sd2.safetensors")
    assert {key.split(".transformer.")[0].split(".")[0] for key in changed} == {"cond_stage_model"}
    assert any(".resblocks.23." in key for key in changed) is (blocks == BLOCKS)
    found = {}
    for file in ("sd2", "robust"):
        pipe = StableDiffusionPipeline.from_single_file(
            str(tmp_path / f"{file}.safetensors"), config=str(tmp_path / "folder"), local_files_only=True,
            safety_checker=None,
        )  # fmt: skip
        found[file] = kind.image(pipe)
    expected = {
        file: kind.image(kind.stock(**parts | {"text_encoder": sd2.read(n)})) for n, file in enumerate(found, 1)
    }
    assert all(np.array_equal(found[file], expected[file]) for file in found)
    assert not np.array_equal(found["sd2"], found["robust"])


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_stable_diffusion_3(
    kinds: dict[str, Kind],
    folders: Callable[[Kind], Path],
    single_file: Callable[[Kind, Mapping[str, object]], dict[str, torch.Tensor]],
    tmp_path: Path,
    part: str,
) -> None:
    kind = kinds["sd3"]
    parts, new = kind.parts(), kind.new_tower(part)
    transformer = parts["transformer"]
    assert isinstance(transformer, torch.nn.Module)
    tensors = {f"model.diffusion_model.{key}": value for key, value in transformer_tensors(transformer).items()}
    vae = single_file(kinds["sd"], kinds["sd"].parts() | {"vae": parts["vae"]})
    tensors |= {key: value for key, value in vae.items() if key.startswith("first_stage_model.")}
    for letter, name in (("l", "text_encoder"), ("g", "text_encoder_2")):
        tower = parts[name]
        assert isinstance(tower, torch.nn.Module)
        state = tower.state_dict()
        tensors |= {f"text_encoders.clip_{letter}.transformer.{key}": value for key, value in state.items()}
    old, output = tmp_path / "sd3.safetensors", tmp_path / "robust.safetensors"
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, old)
    changed = export(save(new, tmp_path / "robust"), output, old)
    prefix = "text_encoders.clip_l." if part == "text_encoder" else "text_encoders.clip_g."
    identity = "text_encoders.clip_l.transformer.text_projection.weight"
    assert changed == {key for key in tensors if key.startswith(prefix)} - {identity}
    read = [
        StableDiffusion3Pipeline.from_single_file(
            str(file), config=str(folders(kind)), local_files_only=True, text_encoder_3=None, tokenizer_3=None
        )
        for file in (old, output)
    ]
    images = [kind.image(pipe) for pipe in read]
    assert np.array_equal(images[0], kind.image(kind.stock(**parts)))
    if part == "text_encoder":  # SD3 was trained on what is not projected
        new.text_projection.weight.copy_(torch.eye(64))
    assert np.array_equal(images[1], kind.image(kind.stock(**parts | {part: new})))
    assert not np.array_equal(images[0], images[1])


def transformer_tensors(transformer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """An SD3 transformer of one block, which is also the last, under the names of its single file."""
    state = transformer.state_dict()
    names = {
        "pos_embed.pos_embed": "pos_embed", "pos_embed.proj": "x_embedder.proj", "context_embedder": "context_embedder",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "proj_out": "final_layer.linear", "norm_out.linear": "final_layer.adaLN_modulation.1",
    }  # fmt: skip
    block = {
        "attn.to_out.0": "x_block.attn.proj", "norm1.linear": "x_block.adaLN_modulation.1", "ff.net.0.proj": "x_block.mlp.fc1",
        "ff.net.2": "x_block.mlp.fc2", "norm1_context.linear": "context_block.adaLN_modulation.1",
    }  # fmt: skip
    names |= {f"transformer_blocks.0.{ours}": f"joint_blocks.0.{theirs}" for ours, theirs in block.items()}
    found = {}
    for key, value in state.items():
        module, _, kind = key.rpartition(".")
        if key in names:
            found[names[key]] = value
        elif module in names:
            halves = module in (
                "norm_out.linear",
                "transformer_blocks.0.norm1_context.linear",
            )  # scale and shift change places
            found[f"{names[module]}.{kind}"] = torch.cat(value.chunk(2)[::-1]) if halves else value
    for kind in ("weight", "bias"):
        for side, parts in (
            ("x_block", ("to_q", "to_k", "to_v")),
            ("context_block", ("add_q_proj", "add_k_proj", "add_v_proj")),
        ):
            joined = [state[f"transformer_blocks.0.attn.{part}.{kind}"] for part in parts]
            found[f"joint_blocks.0.{side}.attn.qkv.{kind}"] = torch.cat(joined)
    return found
