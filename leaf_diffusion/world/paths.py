"""Where the world's weights lie: in the package, or where LEAF_DIFFUSION_WORLD says (a rebuilt world)."""

import os
from pathlib import Path

VARIABLE = "LEAF_DIFFUSION_WORLD"


def weights_root() -> Path:
    """The folder of all parts."""
    return Path(os.environ.get(VARIABLE) or Path(__file__).parent / "weights")


def weights(part: str) -> Path:
    """The folder of one part of the world; a clear error where it is missing."""
    folder = weights_root() / part
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the embedded world's part {part!r} is missing ({folder}); `leaf-diffusion world build` makes it"
        )
    return folder


def pipeline_path() -> Path:
    """The world's Stable Diffusion in the stock folder layout of diffusers."""
    return weights("stable-diffusion")
