"""Whether a run's folder can be made, and holds what the run will write: asked before the work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def check_writable(folder: Path) -> None:
    """OSError where `folder` cannot be made or written."""
    nearest = _nearest(folder)
    if not nearest.is_dir():
        raise NotADirectoryError(f"--output {folder}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"--output {folder}: no permission to write in {nearest}; choose another folder")


def check_space(folder: Path, needed: int) -> None:
    """OSError where the disk of `folder` cannot hold `needed` bytes."""
    nearest = _nearest(folder)
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise OSError(
            f"{nearest}: {free / 1e6:.0f} MB free, the images may need {needed / 1e6:.0f} MB; choose another --output"
        )


def _nearest(folder: Path) -> Path:
    """The folder, or the first of those above it that is there."""
    return next(path for path in [folder, *folder.absolute().parents] if path.exists())
