"""Feature spaces for distances between sets of images: the FID's Inception and DINOv2, behind clean-fid's resizing."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from leaf_diffusion.metrics.resize import clean_resize

INCEPTION_SIZE, DINOV2_SIZE, BATCH = 299, 224, 32
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which DINOv2 was trained with


class FeatureSpace(Protocol):
    """Images to features [n, d]. `name` says which space it is, beside every distance; `module` holds its weights."""

    name: str
    module: nn.Module

    def encode_image(self, images: Sequence[Image.Image], /) -> Tensor: ...


class InceptionSpace:
    """The 2,048 pooled features of the Inception v3 that defines the FID (Heusel et al., 2017); networks by torch-fidelity.

    `state`: its weights under torch-fidelity's names. Raises ValueError where they do not fit, ModuleNotFoundError without
    the package torch-fidelity.
    """

    name = "Inception v3 (FID), clean-fid resizing"

    def __init__(self, state: Mapping[str, Tensor], device: str = "cpu") -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        file = io.BytesIO()
        torch.save(dict(state), file)  # the class opens a file of torch, and otherwise downloads one
        file.seek(0)
        try:
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=file)
        except RuntimeError as error:
            raise ValueError(
                f"these are no weights of the FID's Inception v3: {' '.join(str(error).split())[:200]}"
            ) from error
        # its own forward takes bytes alone and would resize once more
        layers = [layer for name, layer in network.named_children() if name != "fc"]
        self.module: nn.Module = nn.Sequential(*layers, nn.Flatten()).to(device)
        self._device = device

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Image.Image]) -> Tensor:
        """Features [n, 2048] on the CPU."""
        parts = [self.module((pixels - 128) / 128).float() for pixels in _batches(images, INCEPTION_SIZE, self._device)]
        return torch.cat(parts).cpu()


class Dinov2Space:
    """The class token of a DINOv2 behind its last norm, at 224 pixels (as in Stein et al., 2023); `model`: transformers'."""

    def __init__(self, model: Any, name: str, device: str = "cpu") -> None:
        self.name = f"{name}, clean-fid resizing"
        self.module: nn.Module = model.eval().to(device)
        self._device = device
        self._mean, self._std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (_MEAN, _STD))

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Image.Image]) -> Tensor:
        """Features [n, d] on the CPU."""
        parts = []
        for pixels in _batches(images, DINOV2_SIZE, self._device):
            states = self.module((pixels / 255 - self._mean) / self._std).last_hidden_state
            parts.append(states[:, 0].float())
        return torch.cat(parts).cpu()


def _batches(images: Sequence[Image.Image], size: int, device: str) -> Any:
    """Pixels [b, 3, size, size] in 0..255, BATCH images at a time."""
    for start in range(0, len(images), BATCH):
        resized = np.stack([clean_resize(image, size) for image in images[start : start + BATCH]])
        yield torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous().to(device)
