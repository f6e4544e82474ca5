"""`--distance-features`: in which features KID and the Frechet distance compare images, by name."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from leaf_diffusion.metrics.feature_spaces import Dinov2Space, FeatureSpace, InceptionSpace
from leaf_diffusion.weights.files import load_weights
from leaf_diffusion.weights.models import load_config, load_model
from leaf_diffusion.weights.pickles import conversion

VARIABLE = "LEAF_DIFFUSION_METRICS"
INCEPTION_PICKLE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_ADDRESS = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_PICKLE}"
DINOV2 = "facebook/dinov2-large"
KINDS = ("auto", "judge", "inception", "dinov2")


def check_name(name: str) -> None:
    """ValueError for a name that is none of KINDS, or gives a place to one that has none."""
    kind, colon, place = name.partition(":")
    if kind not in KINDS or (colon and (kind not in ("inception", "dinov2") or not place)):
        raise ValueError(
            f"--distance-features {name}: not known; give auto, judge, inception, inception:FILE.safetensors, dinov2 or "
            "dinov2:FOLDER (or a Hub id)"
        )


def inception_file() -> Path:
    """Where the Inception's weights are looked for: LEAF_DIFFUSION_METRICS, or ~/.cache/leaf_diffusion."""
    folder = Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "leaf_diffusion")
    return folder / INCEPTION_PICKLE.replace(".pth", ".safetensors")


def load_space(name: str, device: str) -> tuple[FeatureSpace | None, list[str]]:
    """The space, None for the judge's own, and what "auto" did not find.

    Raises FileNotFoundError where named weights are missing (with what to do), ValueError for files that do not fit, for
    pickles, and without the package torch-fidelity.
    """
    check_name(name)
    kind, _, place = name.partition(":")
    if kind == "inception":
        return _inception(Path(place).expanduser() if place else inception_file(), device), []
    if kind == "dinov2":
        return _dinov2(place or DINOV2, device), []
    if kind == "judge":
        return None, []
    file, missing = inception_file(), list[str]()
    if file.is_file() and _has_fidelity():
        return _inception(file, device), []
    missing.append(f"no Inception ({'the package torch-fidelity is missing' if file.is_file() else f'no {file}'})")
    if isinstance(try_to_load_from_cache(DINOV2, "model.safetensors"), str):
        return _dinov2(DINOV2, device), missing
    return None, [*missing, f"no DINOv2 ({DINOV2} is not in the Hub's cache)"]


def _has_fidelity() -> bool:
    return importlib.util.find_spec("torch_fidelity") is not None


def _inception(file: Path, device: str) -> FeatureSpace:
    if not _has_fidelity():
        raise ValueError("--distance-features inception needs the package torch-fidelity: pip install torch-fidelity")
    if not file.is_file():
        pickle = Path(INCEPTION_PICKLE)
        raise FileNotFoundError(
            f"--distance-features inception: no weights in {file}. Download {INCEPTION_ADDRESS} and convert it: "
            f"{conversion((pickle, file))}"
        )
    try:
        return InceptionSpace(load_weights(file), device)
    except ValueError as error:
        raise ValueError(f"--distance-features inception: {file} cannot be used: {error}") from error


def _dinov2(place: str, device: str) -> FeatureSpace:
    from transformers import AutoModel

    try:
        config = load_config(place, {})
        if config.model_type not in ("dinov2", "dinov2_with_registers"):
            raise ValueError(f"it is a {config.model_type}, no DINOv2")
        module, _ = load_model(AutoModel, place, {}, config=config)
        return Dinov2Space(module, f"DINOv2 {place}", device)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--distance-features dinov2: {place} cannot be loaded: {reason}") from error
