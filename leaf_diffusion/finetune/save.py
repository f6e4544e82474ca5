"""The finished encoder as a Hugging Face folder."""

import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from transformers import CLIPTextModelWithProjection

from leaf_diffusion.runs.files import explained


def save_encoder(
    tower: CLIPTextModelWithProjection, tokenizer: object, card: str, output: Path, dtype: torch.dtype
) -> None:
    """Write weights (safetensors), tokenizer and model card into `output`, each file whole. Raises RunFolderError."""
    weights = {name: value.detach().to("cpu", dtype).contiguous() for name, value in tower.state_dict().items()}
    with explained(output, "writing into"), tempfile.TemporaryDirectory(prefix=".saving-", dir=output) as folder:
        tower.save_pretrained(folder, state_dict=weights)
        cast(Any, tokenizer).save_pretrained(folder)
        Path(folder, "README.md").write_text(card, encoding="utf-8")
        for path in sorted(Path(folder).iterdir()):
            path.chmod(0o644)
            path.replace(output / path.name)
