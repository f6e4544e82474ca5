"""Repairs of other packages' installs, each with its reason. Imported before anything else."""

import importlib.util
from pathlib import Path

import torch


def _mend_torchvision() -> "torch.library.Library | None":
    """Make `import torchvision` work where its compiled extension cannot load.

    A CUDA build of torchvision beside a CPU build of torch fails at import ("operator torchvision::nms does not exist")
    and takes transformers, diffusers and open_clip down with it, none of which calls these operators here. Declaring the
    two operators' schemas is enough. Nothing is done where the extension loads, the operators exist already, or torchvision is not installed.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations or hasattr(torch.ops.torchvision, "nms"):
        return None
    for binary in Path(next(iter(spec.submodule_search_locations))).glob("_C*.so"):
        try:
            torch.ops.load_library(str(binary))
        except OSError:
            continue
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


_LIBRARY = _mend_torchvision()  # the schemas live as long as this object
