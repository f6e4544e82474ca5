"""The finished encoder as a Hugging Face folder."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from leaf_diffusion.encoders.reading_file import write_reading
from leaf_diffusion.runs.files import explained
from leaf_diffusion.tokens.reading import Reading

SPELLING, SAVING = "spelling.safetensors", ".saving-"


@contextmanager
def whole_files(output: Path) -> Iterator[Path]:
    """A folder to write into; at the end its files move to `output`, each whole. Raises RunFolderError."""
    for left in output.glob(f"{SAVING}*"):  # by a process that was killed here
        shutil.rmtree(left, ignore_errors=True)
    with explained(output, "writing into"), tempfile.TemporaryDirectory(prefix=SAVING, dir=output) as folder:
        yield Path(folder)
        for path in sorted(Path(folder).iterdir()):
            path.chmod(0o644)
            path.replace(output / path.name)


def save_encoder(
    tower: PreTrainedModel,
    tokenizer: Any,
    card: str,
    output: Path,
    dtype: torch.dtype,
    spelling: Tensor | None = None,
    reading: Reading | None = None,
) -> None:
    """Write weights (safetensors), tokenizer (of an image tower: its processor) and model card into `output`, each file
    whole. Raises RunFolderError.

    `spelling`: the vectors that are in the token table already, kept beside it in float32: with them the difference to
    the original takes a few MB instead of a whole table. `reading`: how prompts are written for an encoder that is no CLIP.
    """
    cast: dict[object, Tensor] = {}  # tied tensors stay one
    weights = {
        name: cast.setdefault(
            (value.data_ptr(), value.shape, value.stride()), value.detach().to("cpu", dtype).contiguous()
        )
        for name, value in tower.state_dict().items()
    }
    with whole_files(output) as folder:
        tower.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
        if reading is not None:
            write_reading(reading, folder)
        if spelling is not None:
            save_file({"spelling": spelling.cpu().contiguous()}, folder / SPELLING)
        (folder / "README.md").write_text(card, encoding="utf-8")
