"""Tiny seeded pipelines of each kind, and the single-file layouts of them (the inverse of what diffusers reads)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from leaf_diffusion.encoders.convert import to_open_clip
from leaf_diffusion.pipelines import (
    LeafStableDiffusion3Pipeline,
    LeafStableDiffusionPipeline,
    LeafStableDiffusionXLPipeline,
)
from tests import tiny
from tests.tiny import TOKENIZER, Changes

PROMPT = "a red umbrella"
SIZES: Changes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1, "projection_dim": 64}
SIZES |= {"initializer_factor": 3.0}
"""One head: a single file says shapes alone, and CLIP's heads are 64 wide."""


def tower(
    kind: type[PreTrainedModel] = CLIPTextModelWithProjection, seed: int = 0, **changes: Unpack[Changes]
) -> PreTrainedModel:
    """A text tower of SIZES."""
    made = tiny.tower(kind, seed, **SIZES | changes).requires_grad_(False)
    for parameter in made.parameters():  # gains and biases that are not neutral
        parameter.add_(0.1 * torch.randn_like(parameter) if parameter.ndim == 1 else 0)
    return made


def _sd() -> dict[str, object]:
    return {
        "unet": tiny.unet(cross_attention_dim=64), "vae": tiny.vae(),
        "text_encoder": tower(CLIPTextModel), "tokenizer": TOKENIZER,
        "scheduler": DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
    }  # fmt: skip


def _xl() -> dict[str, object]:
    unet = tiny.unet(
        cross_attention_dim=128 + 64, attention_head_dim=(2, 4), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 32,
    )  # fmt: skip
    second = tower(seed=1, hidden_size=128, num_attention_heads=2, projection_dim=32, hidden_act="gelu")
    return {
        "unet": unet, "vae": tiny.vae(), "scheduler": EulerDiscreteScheduler(),
        "text_encoder": tower(CLIPTextModel), "tokenizer": TOKENIZER,
        "text_encoder_2": second, "tokenizer_2": TOKENIZER, "add_watermarker": False,
    }  # fmt: skip


def _sd3() -> dict[str, object]:
    torch.manual_seed(3)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=128 + 64, pooled_projection_dim=128 + 64, out_channels=4,
    )  # fmt: skip
    first = tower()
    first.text_projection.weight.copy_(torch.eye(64))  # as in SD3, which takes CLIP-L's pooled state unprojected
    second = tower(seed=1, hidden_size=128, num_attention_heads=2, projection_dim=128, hidden_act="gelu")
    return {
        "transformer": transformer.eval(), "vae": tiny.vae(**tiny.NEWER_VAE),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "text_encoder": first, "tokenizer": TOKENIZER, "text_encoder_2": second, "tokenizer_2": TOKENIZER,
        "text_encoder_3": None, "tokenizer_3": None,
    }  # fmt: skip


def module(parts: Mapping[str, object], name: str) -> torch.nn.Module:
    """A part that is a network."""
    part = parts[name]
    assert isinstance(part, torch.nn.Module)
    return part


@dataclass(frozen=True)
class Kind:
    """A Leaf pipeline, its stock twin, and tiny components for both.

    `load`: what from_pretrained is told besides. `towers`: the parts that can be exchanged.
    """

    name: str
    leaf: type[DiffusionPipeline]
    stock: type[DiffusionPipeline]
    make: Callable[[], dict[str, object]]
    load: dict[str, object]
    towers: tuple[str, ...]

    def parts(self) -> dict[str, object]:
        return self.make()

    def module(self, name: str) -> torch.nn.Module:
        """One of new parts that is a network."""
        return module(self.make(), name)

    def new_tower(self, part: str, seed: int = 7, **changes: Unpack[Changes]) -> PreTrainedModel:
        """Another text encoder of the shape that `part` has, with a projection."""
        old = self.module(part).config
        sizes: Changes = {"hidden_size": old.hidden_size, "num_attention_heads": old.num_attention_heads}
        sizes |= {"hidden_act": old.hidden_act, "projection_dim": old.projection_dim}
        return tower(seed=seed, **sizes | changes)

    def image(
        self, pipe: DiffusionPipeline, prompt: str | list[str] | None = PROMPT, /, **options: object
    ) -> np.ndarray:
        pipe.set_progress_bar_config(disable=True)
        for part in pipe.components.values():  # matrix products round by how their memory is aligned
            for weight in part.parameters() if isinstance(part, torch.nn.Module) else ():
                if weight.data_ptr() % 64:
                    weight.data = weight.data.clone()
        generator = torch.Generator().manual_seed(0)
        size = {"height": 8, "width": 8} if self.name != "sd3" else {"height": 16, "width": 16}
        asked = {"num_inference_steps": 2, "output_type": "np", "generator": generator} | size | options
        return pipe(prompt, **asked).images


_READERS = {
    "tokenizer": TOKENIZER,
    "tokenizer_2": TOKENIZER,
}  # reading them from a folder takes longer than all the rest
_ONE, _TWO = ("text_encoder",), ("text_encoder", "text_encoder_2")
_SD3 = {"text_encoder_3": None, "tokenizer_3": None} | _READERS
KINDS = {
    "sd": Kind("sd", LeafStableDiffusionPipeline, StableDiffusionPipeline, _sd, {"tokenizer": TOKENIZER}, _ONE),
    "xl": Kind(
        "xl", LeafStableDiffusionXLPipeline, StableDiffusionXLPipeline, _xl, {"add_watermarker": False} | _READERS, _TWO
    ),
    "sd3": Kind("sd3", LeafStableDiffusion3Pipeline, StableDiffusion3Pipeline, _sd3, _SD3, _TWO),
}


@pytest.fixture(scope="session", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each of the three pipelines in turn."""
    return KINDS[request.param]


@pytest.fixture(scope="session")
def kinds() -> dict[str, Kind]:
    return KINDS


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Path]:
    """The folder that the stock pipeline of a kind saved, made once."""
    made: dict[str, Path] = {}

    def folder(kind: Kind) -> Path:
        if kind.name not in made:
            made[kind.name] = tmp_path_factory.mktemp(kind.name)
            kind.stock(**kind.parts()).save_pretrained(made[kind.name])
        return made[kind.name]

    return folder


@pytest.fixture(scope="session")
def new_tower() -> Callable[..., PreTrainedModel]:
    return tower


@pytest.fixture(scope="session")
def single_file() -> Callable[[Kind, Mapping[str, object]], dict[str, torch.Tensor]]:
    """The tensors of a pipeline as its single file names them (SD and XL)."""

    def tensors(kind: Kind, parts: Mapping[str, object]) -> dict[str, torch.Tensor]:
        found = {f"model.diffusion_model.{_unet_key(k)}": v for k, v in module(parts, "unet").state_dict().items()}
        for key, value in module(parts, "vae").state_dict().items():
            convolution = "mid_block.attentions" in key and key.endswith("weight") and value.ndim == 2
            found[f"first_stage_model.{_vae_key(key)}"] = value[:, :, None, None] if convolution else value
        prefix = "cond_stage_model." if kind.name == "sd" else "conditioner.embedders.0."
        for key, value in module(parts, "text_encoder").state_dict().items():
            found[f"{prefix}transformer.text_model.{key.removeprefix('text_model.')}"] = value
        found[f"{prefix}transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
        if kind.name == "xl":
            second = to_open_clip(module(parts, "text_encoder_2").state_dict())
            found |= {f"conditioner.embedders.1.model.{key}": value for key, value in second.items()}
            found["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
        return {key: value.clone().contiguous() for key, value in found.items()}

    return tensors


_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
_RESNET |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
_OUTER = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
_OUTER |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
_OUTER |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}


def _unet_key(key: str) -> str:
    """A UNet of one layer a block, two levels, attention in the lower one."""
    start, _, kind = key.rpartition(".")
    if start in _OUTER:
        return f"{_OUTER[start]}.{kind}"
    found = re.fullmatch(r"(down|up|mid)_blocks?\.?(\d*)\.(\w+)\.(\d+)\.(.*)", key)
    assert found is not None
    where, block, what, layer, rest = found.groups()
    if what == "resnets":
        name, _, kind = rest.rpartition(".")
        rest = f"{_RESNET[name]}.{kind}"
    if where == "mid":
        return f"middle_block.{2 * int(layer) if what == 'resnets' else 1}.{rest}"
    side = "input_blocks" if where == "down" else "output_blocks"
    number = int(block) * 2 + int(layer) + (where == "down")
    if what == "downsamplers":
        return f"{side}.{number + 1}.0.{rest.replace('conv', 'op')}"
    if what == "upsamplers":
        return f"{side}.{number + 1}.2.{rest}"
    return f"{side}.{number}.{1 if what == 'attentions' else 0}.{rest}"


def _vae_key(key: str) -> str:
    """A VAE of two levels."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    for old, new in {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        key = key.replace(f"mid_block.attentions.0.{old}", f"mid.attn_1.{new}")
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{1 - int(m[1])}.block", key)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample", key)
