"""LoRA of a text tower: trained instead of the weights, saved as a file of a few MB.

The same vectors are written twice, as a PEFT adapter (plain transformers, `load_text_encoder(adapter=)`) and as the
file that diffusers' `load_lora_weights` reads. Both readers take a LoRA of the token table as well, which a defence
against misspellings needs: a typo is made of tokens whose rows have learnt little. diffusers takes the table's rank from
that of the linear layers, so it is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from leaf_diffusion.finetune.save import whole_files
from leaf_diffusion.finetune.spelling import SpellingEmbedding
from leaf_diffusion.finetune.tower import embeddings_of

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

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + self.coefficients(ids) @ self.directions

    @torch.no_grad()
    def factors(self) -> tuple[Tensor, Tensor]:
        """PEFT's lora_embedding_A [rank, tokens] and lora_embedding_B [width, rank]."""
        table = self.coefficients
        coefficients = table.merged() if isinstance(table, SpellingEmbedding) else table.weight
        return coefficients.T, self.directions.T


def add_lora(tower: nn.Module, rank: int, seed: int, *, token_embedding: bool = False, spelling_of: Any = None) -> None:
    """Put LoRA layers (alpha = rank, so unscaled) into the tower's blocks and, if asked, around its token table;
    nothing else is trained from here on. `spelling_of`: a tokenizer whose spelling the table's LoRA learns from."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("lora_rank needs the package peft: pip install peft") from error
    tower.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the first matrices are random, and the same in every process
        inject_adapter_in_model(_config(LoraConfig, rank, TARGETS), tower)
        if token_embedding:
            embeddings = embeddings_of(tower)
            embeddings.token_embedding = LoraEmbedding(embeddings.token_embedding, rank, spelling_of)


def lora_vectors(tower: nn.Module) -> dict[str, Tensor]:
    """The LoRA matrices, named as in PEFT but for its prefix: "text_model.encoder.layers.0....lora_A.weight"."""
    from peft.utils import get_peft_model_state_dict

    vectors = {key: value.detach() for key, value in get_peft_model_state_dict(tower).items()}
    for name, module in tower.named_modules():
        if isinstance(module, LoraEmbedding):
            vectors[f"{name}.lora_embedding_A"], vectors[f"{name}.lora_embedding_B"] = module.factors()
    # a CLIPTextModel's own names lack the first part, which diffusers and PEFT's adapters have
    return {f"text_model.{key.removeprefix('text_model.')}": value for key, value in vectors.items()}


def save_lora(tower: nn.Module, rank: int, base: str, card: str, output: Path, dtype: torch.dtype) -> None:
    """Write adapter, its diffusers twin and README.md into `output`, each file whole. Raises RunFolderError."""
    from peft import LoraConfig

    vectors = {key: value.to("cpu", dtype).contiguous() for key, value in lora_vectors(tower).items()}
    table = any("lora_embedding_" in key for key in vectors)
    config = _config(LoraConfig, rank, (*TARGETS, TABLE) if table else TARGETS)
    config.base_model_name_or_path, config.inference_mode = base, True
    with whole_files(output) as folder:
        config.save_pretrained(folder)
        metadata = {"format": "pt"}
        adapter = {f"base_model.model.{key}": value for key, value in vectors.items()}
        save_file(adapter, folder / "adapter_model.safetensors", metadata)
        save_file({f"text_encoder.{key}": value for key, value in vectors.items()}, folder / DIFFUSERS, metadata)
        (folder / "README.md").write_text(card, encoding="utf-8")


def _config(kind: Any, rank: int, targets: Sequence[str]) -> Any:
    return kind(r=rank, lora_alpha=rank, target_modules=list(targets), lora_dropout=0.0)
