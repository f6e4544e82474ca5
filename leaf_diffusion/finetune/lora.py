"""LoRA of a text tower: trained instead of the weights, saved as a file of a few MB.

The same vectors are written twice, as a PEFT adapter (plain transformers, `load_text_encoder(adapter=)`) and as the
file that diffusers' `load_lora_weights` reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from leaf_diffusion.finetune.save import whole_files

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""All linear layers of CLIP's blocks; the projection stays, as a Stable Diffusion's text encoder has none."""
DIFFUSERS = "pytorch_lora_weights.safetensors"


def add_lora(tower: nn.Module, rank: int, seed: int) -> None:
    """Put LoRA layers (alpha = rank, so unscaled) into the tower's blocks; nothing else is trained from here on."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("lora_rank needs the package peft: pip install peft") from error
    tower.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the first matrices are random, and the same in every process
        inject_adapter_in_model(_config(LoraConfig, rank), tower)


def lora_vectors(tower: nn.Module) -> dict[str, Tensor]:
    """The LoRA matrices, named as in PEFT but for its prefix: "text_model.encoder.layers.0....lora_A.weight"."""
    from peft.utils import get_peft_model_state_dict

    return {key: value.detach() for key, value in get_peft_model_state_dict(tower).items()}


def save_lora(tower: nn.Module, rank: int, base: str, card: str, output: Path, dtype: torch.dtype) -> None:
    """Write adapter, its diffusers twin and README.md into `output`, each file whole. Raises RunFolderError."""
    from peft import LoraConfig

    vectors = {key: value.to("cpu", dtype).contiguous() for key, value in lora_vectors(tower).items()}
    config = _config(LoraConfig, rank)
    config.base_model_name_or_path, config.inference_mode = base, True
    with whole_files(output) as folder:
        config.save_pretrained(folder)
        metadata = {"format": "pt"}
        adapter = {f"base_model.model.{key}": value for key, value in vectors.items()}
        save_file(adapter, folder / "adapter_model.safetensors", metadata)
        save_file({f"text_encoder.{key}": value for key, value in vectors.items()}, folder / DIFFUSERS, metadata)
        (folder / "README.md").write_text(card, encoding="utf-8")


def _config(kind: Any, rank: int) -> Any:
    return kind(r=rank, lora_alpha=rank, target_modules=list(TARGETS), lora_dropout=0.0)
