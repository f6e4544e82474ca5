"""LoRA of a text tower: trained instead of the weights, saved as a file of a few MB.

It is written as a PEFT adapter (plain PEFT and transformers, `load_text_encoder(adapter=)`) and, of a CLIP, as the file that
diffusers' `load_lora_weights` reads, too; diffusers loads no LoRA of other text encoders. All readers take a LoRA of the token
table as well, which a defence against misspellings needs: a typo is made of tokens whose rows have learnt little. diffusers
takes the table's rank from that of the linear layers, so it is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from leaf_diffusion.encoders.adapter import ROOT, WEIGHTS
from leaf_diffusion.encoders.reading_file import write_reading
from leaf_diffusion.finetune.save import whole_files
from leaf_diffusion.finetune.spelling import SpellingEmbedding
from leaf_diffusion.finetune.tower import embeddings_of
from leaf_diffusion.tokens.reading import Reading

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""All linear layers of CLIP's blocks; the projection stays, as a Stable Diffusion's text encoder has none."""
TABLE = "token_embedding"
DIFFUSERS = "pytorch_lora_weights.safetensors"


class LoraEmbedding(nn.Embedding):  # type: ignore[misc]  # strict mode without torch's types
    """A frozen token table plus the product of `coefficients` (a table [tokens, rank], zero at first) and `directions`
    [rank, width]: PEFT's LoRA of an embedding. With a tokenizer the coefficients know how their token is spelt."""

    def __init__(self, table: nn.Embedding, rank: int, tokenizer: Any = None) -> None:
        size, width = table.weight.shape
        super().__init__(size, width, _weight=table.weight.detach())
        self.weight.requires_grad_(False)
        coefficients = nn.Embedding(size, rank, _weight=torch.zeros(size, rank))
        self.coefficients = coefficients if tokenizer is None else SpellingEmbedding(coefficients, tokenizer)
        # a step of the coefficients moves a row about as far as a step of its own would
        self.directions = nn.Parameter(torch.randn(rank, width) / rank**0.5)
        self.scale = float(getattr(table, "embed_scale", 1.0))  # Gemma's table multiplies what it looks up

    def forward(self, ids: Tensor) -> Tensor:
        rows = super().forward(ids)
        rows = rows + (self.coefficients(ids) @ self.directions).to(rows.dtype)
        return rows if self.scale == 1.0 else rows * torch.tensor(self.scale, dtype=rows.dtype)

    @torch.no_grad()
    def factors(self) -> tuple[Tensor, Tensor]:
        """PEFT's lora_embedding_A [rank, tokens] and lora_embedding_B [width, rank]."""
        table = self.coefficients
        coefficients = table.merged() if isinstance(table, SpellingEmbedding) else table.weight
        return coefficients.T, self.directions.T


def add_lora(
    tower: nn.Module,
    rank: int,
    seed: int,
    *,
    targets: Sequence[str] = TARGETS,
    token_embedding: bool | str = False,
    spelling_of: Any = None,
) -> None:
    """Put LoRA layers (alpha = rank, so unscaled, float32) into the tower's linear layers (PEFT's `targets`) and, if asked,
    around its token table (of a CLIP, or the module of that name); nothing else is trained from here on. `spelling_of`: a
    tokenizer whose spelling the table's LoRA learns from."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("lora_rank needs the package peft: pip install peft") from error
    tower.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the first matrices are random, and the same in every process
        inject_adapter_in_model(_config(LoraConfig, rank, targets), tower)
        for parameter in tower.parameters():
            if parameter.requires_grad:
                # PEFT takes the base's type, in which small steps would be lost
                parameter.data = parameter.data.float()
        if token_embedding:
            where = tower if isinstance(token_embedding, str) else embeddings_of(tower)
            name = token_embedding if isinstance(token_embedding, str) else TABLE
            where.set_submodule(name, LoraEmbedding(where.get_submodule(name), rank, spelling_of))


def lora_vectors(tower: nn.Module) -> dict[str, Tensor]:
    """The LoRA matrices, named as in PEFT but for its prefix: "encoder.layers.0....lora_A.weight"."""
    from peft.utils import get_peft_model_state_dict

    vectors = {
        key: value.detach() for key, value in get_peft_model_state_dict(tower, save_embedding_layers=False).items()
    }
    for name, module in tower.named_modules():
        if isinstance(module, LoraEmbedding):
            vectors[f"{name}.lora_embedding_A"], vectors[f"{name}.lora_embedding_B"] = module.factors()
    return vectors


def save_lora(
    tower: nn.Module,
    rank: int,
    base: str,
    card: str,
    output: Path,
    dtype: torch.dtype,
    *,
    targets: Sequence[str] = TARGETS,
    reading: Reading | None = None,
) -> None:
    """Write adapter, README.md and, of a CLIP, the adapter's diffusers twin, else `reading`, into `output`, each file whole.
    Raises RunFolderError."""
    from peft import LoraConfig

    vectors = {key: value.to("cpu", dtype).contiguous() for key, value in lora_vectors(tower).items()}
    tables = {key.split(".")[-2] for key in vectors if "lora_embedding_" in key}
    config = _config(LoraConfig, rank, (*targets, *tables))
    config.base_model_name_or_path, config.inference_mode = base, True
    metadata = {"format": "pt"}
    with whole_files(output) as folder:
        config.save_pretrained(folder)
        if reading is None:
            # of CLIP's classes one is the transformer, others hold it as `text_model`: plain PEFT matches names to the letter
            flat = {key.removeprefix("text_model."): value for key, value in vectors.items()}
            held = {f"text_model.{key}": value for key, value in flat.items()}
            vectors = held | {key: value.clone() for key, value in flat.items()}
            save_file({f"text_encoder.{key}": value for key, value in held.items()}, folder / DIFFUSERS, metadata)
        else:
            write_reading(reading, folder)
        adapter = {f"{ROOT}{key}": value for key, value in vectors.items()}
        save_file(adapter, folder / WEIGHTS, metadata)
        (folder / "README.md").write_text(card, encoding="utf-8")


def _config(kind: Any, rank: int, targets: Sequence[str]) -> Any:
    return kind(r=rank, lora_alpha=rank, target_modules=list(targets), lora_dropout=0.0)
