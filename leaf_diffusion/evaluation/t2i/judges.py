"""Who measures the images: a CLIP for CLIPScore and feature spaces, the world's scene judge, and real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from leaf_diffusion.evaluation.t2i.feature_spaces import load_space
from leaf_diffusion.evaluation.t2i.options import Options
from leaf_diffusion.images import ImageFolder, to_rgb
from leaf_diffusion.metrics.feature_spaces import FeatureSpace
from leaf_diffusion.world import SceneJudge, load_judge_clip, real_images

REAL_IMAGES = 500


class ImageModel(Protocol):
    """Features [n, d] of images."""

    def encode_image(self, images: Sequence[Image.Image], /) -> Tensor: ...


class ImageTextModel(ImageModel, Protocol):
    """What CLIPScore needs: features of images and of captions in one space."""

    def encode_text(self, texts: Sequence[str], /) -> Tensor: ...


@dataclass(frozen=True)
class Judges:
    """`clip` and `scenes` are None where nothing measures with them; `space` names the feature space of `clip`.

    `distances`: the space of KID and the Frechet distance where that is not the clip's; `missing`: what was looked for in
    its place. `real`: the images that these distances are to.
    """

    clip: ImageTextModel | None
    space: str | None
    scenes: Any
    real: list[Image.Image]
    distances: FeatureSpace | None = None
    missing: Sequence[str] = ()

    def spaces(self) -> dict[str, tuple[str, ImageModel]]:
        """Distance -> the name of its feature space and what encodes in it; nothing without real images."""
        if not self.real:
            return {}
        clip = None if self.clip is None else (str(self.space), self.clip)
        other = clip if self.distances is None else (self.distances.name, self.distances)
        found = {"kid": other, "cmmd": clip, "frechet": other}
        return {metric: space for metric, space in found.items() if space is not None}


def load_judges(options: Options) -> Judges:
    """The judges that the options ask for; ValueError or OSError for a model or a folder that is not there."""
    clip: ImageTextModel | None = None
    space = None
    if options.clip_score_model is not None:
        clip, space = OpenCLIPJudge(options.clip_score_model, options.device), options.clip_score_model
    elif options.world:
        clip, space = load_judge_clip(), "world:judge image features"
    real: list[Image.Image] = []
    if options.real_images is not None:
        real = read_images(options.real_images)
    elif options.world:
        real = list(real_images(REAL_IMAGES, options.prompt_seed))
    distances, missing = None, list[str]()
    asked = options.distance_features or "judge"
    if real:
        distances, missing = load_space(asked, options.device)
    elif asked not in ("auto", "judge"):
        raise ValueError(f"--distance-features {asked} needs --real-images FOLDER, which the images are compared with")
    if clip is None and distances is None:
        real = []
    return Judges(clip, space, SceneJudge.load() if options.world else None, real, distances, missing)


class OpenCLIPJudge:
    """A CLIP of open_clip ("ViT-B-16/openai"), or a CLIP folder or Hub id of transformers."""

    def __init__(self, name: str, device: str) -> None:
        self.device = device
        if Path(name).is_dir() or (name.count("/") == 1 and not _open_clip_knows(name)):
            from transformers import CLIPModel, CLIPProcessor

            self.model: Any = CLIPModel.from_pretrained(name, use_safetensors=True).eval().to(device)
            self.processor: Any = CLIPProcessor.from_pretrained(name)
            return
        import open_clip

        model, weights = name.split("/", 1) if "/" in name else (name, None)
        if not weights or (model, weights) not in open_clip.list_pretrained():
            raise ValueError(
                f"--clip-score-model {name}: neither a folder nor an open_clip MODEL/WEIGHTS such as ViT-B-16/openai"
            )
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(model, pretrained=weights, device=device)
        self.tokenizer = open_clip.get_tokenizer(model)
        self.model.eval()
        self.processor = None

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Image.Image]) -> Tensor:
        parts = []
        for i in range(0, len(images), 32):
            batch = [to_rgb(image) for image in images[i : i + 32]]
            if self.processor is None:
                parts.append(self.model.encode_image(torch.stack([self.preprocess(p) for p in batch]).to(self.device)))
            else:
                pixels = self.processor(images=batch, return_tensors="pt").pixel_values.to(self.device)
                parts.append(self.model.visual_projection(self.model.vision_model(pixels).pooler_output))
        return torch.cat(parts).float().cpu()

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        parts = []
        for i in range(0, len(texts), 64):
            batch = list(texts[i : i + 64])
            if self.processor is None:
                parts.append(self.model.encode_text(self.tokenizer(batch).to(self.device)))
            else:
                tokens = self.processor(text=batch, padding=True, truncation=True, return_tensors="pt").to(self.device)
                parts.append(self.model.text_projection(self.model.text_model(**tokens).pooler_output))
        return torch.cat(parts).float().cpu()


def _open_clip_knows(name: str) -> bool:
    import open_clip

    return tuple(name.split("/", 1)) in open_clip.list_pretrained()


def read_images(folder: Path) -> list[Image.Image]:
    """Every image of a folder and its sub-folders in RGB; ValueError for fewer than two."""
    images = ImageFolder(folder)
    if len(images.names) < 2:
        raise ValueError(f"--real-images: {folder} holds {len(images.names)} images; distances need many")
    return [images.load(i) for i in range(len(images.names))]
