"""The judging CLIP behind one small face: features of images and captions, and its text tower as an attack's neutral source."""

from collections.abc import Sequence
from functools import cache

import open_clip
import torch
from PIL import Image
from torch import Tensor

from leaf_diffusion.encoders.load import wrap
from leaf_diffusion.images import to_rgb
from leaf_diffusion.weights.fingerprints import fingerprint
from leaf_diffusion.world.clip import judge_features
from leaf_diffusion.world.scenes import SIZE, pixels
from leaf_diffusion.world.sources import load_judge_module


class JudgeClip:
    """CLIPScore, KID, CMMD and Frechet features (width 64) by a model that no attack is tuned on, unless asked to."""

    name = "world judge (open_clip ViT, 64 wide)"

    def __init__(self, model: open_clip.CLIP) -> None:
        self.model = model.eval()
        self._features = judge_features(self.model)

    @property
    def fingerprint(self) -> str:
        """Of its weights."""
        return fingerprint(self.model)

    @property
    def text_fingerprint(self) -> str:
        """Of its text encoder, as `load_text_encoder("world:judge")` gives it."""
        return wrap(self.model, None).fingerprint

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Image.Image]) -> Tensor:
        """Unnormalised features of RGB images, [n, 64]; other sizes than 64 x 64 are resized."""
        batches = [images[i : i + 256] for i in range(0, len(images), 256)]
        fitted = [[to_rgb(p).resize((SIZE, SIZE), Image.Resampling.BOX) for p in batch] for batch in batches]
        return torch.cat([self._features.images(pixels(batch)) for batch in fitted])

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unnormalised features of captions, [n, 64]."""
        return torch.cat([self._features.texts(list(texts[i : i + 256])) for i in range(0, len(texts), 256)])


@cache
def load_judge_clip() -> JudgeClip:
    """The judging CLIP that ships with the package."""
    return JudgeClip(load_judge_module())
