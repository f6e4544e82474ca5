"""Who measures the images: a CLIP for CLIPScore and feature spaces, the world's scene judge, and real images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from rich.markup import escape
from torch import Tensor

from leaf_diffusion.encoders import TextEncoder, load_text_encoder
from leaf_diffusion.encoders.image_encoder import load_image_encoder, wrap_image_encoder
from leaf_diffusion.encoders.load import wrap
from leaf_diffusion.encoders.openclip import load_openclip
from leaf_diffusion.evaluation.t2i.feature_spaces import load_space
from leaf_diffusion.evaluation.t2i.options import Options
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.images import ImageFolder
from leaf_diffusion.metrics.distribution import least_images
from leaf_diffusion.metrics.feature_spaces import FeatureSpace
from leaf_diffusion.reports.results import METRICS, SETS
from leaf_diffusion.text.visible import isolated
from leaf_diffusion.weights.fingerprints import fingerprint
from leaf_diffusion.world import SceneJudge, load_judge_clip, real_images

REAL_IMAGES = 500


class ImageModel(Protocol):
    """Features [n, d] of images."""

    def encode_image(self, images: Sequence[Image.Image], /) -> Tensor: ...


class ImageTextModel(ImageModel, Protocol):
    """What CLIPScore needs: features of images and of captions in one space."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def text_fingerprint(self) -> str:
        """Of its text encoder, as `load_text_encoder` gives it: prompts that were attacked on it are not judged by it."""
        ...

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
        found = {metric: clip if metric == "cmmd" else other for metric in SETS}
        return {metric: space for metric, space in found.items() if space is not None}

    def fingerprints(self) -> dict[str, str]:
        """What decides the figures besides the images: the judges' weights, and the real images by their content."""
        found = {} if self.clip is None else {"clip": self.clip.fingerprint}
        if self.scenes is not None:
            found["scenes"] = fingerprint(self.scenes.model)
        if self.real:
            digest = hashlib.sha256()
            for image in self.real:
                digest.update(f"{image.mode} {image.size}\n".encode() + image.tobytes())
            found["real_images"] = digest.hexdigest()
        return found

    def described(self, setup: Setup) -> dict[str, object]:
        """What the results say of the judges."""
        return {
            "feature_space": self.space,
            "feature_spaces": {metric: name for metric, (name, _) in self.spaces().items()},
            "real_images": len(self.real),
            "left_out": self.left_out(setup),
        }

    def left_out(self, setup: Setup) -> list[str]:
        """A sentence about each figure that this run will not have, and what would bring it."""
        said, spaces = list[str](), self.spaces()
        if all(prompt.scene is None for prompt in setup.prompts):
            said.append("scene accuracy needs the world's own prompts: left out")
        if self.clip is None:
            said.append("no --clip-score-model: CLIPScore and CMMD are left out")
        if "frechet" not in spaces:
            absent = (
                ["no --real-images"] if setup.options.real_images is None else ["no --clip-score-model", *self.missing]
            )
            also = ", CMMD" if setup.options.real_images is None else ""
            said.append(f"{'; '.join(absent)}: KID{also} and Frechet distance are left out")
        for label in [] if self.clip is None else setup.sources_that_are(self.clip.text_fingerprint):
            it = f"where prompts are attacked on {isolated(label)}: it is the judging CLIP itself"
            said.append(f"CLIPScore is left out {it}")
        images = len(setup.plan.prompts) * setup.plan.seeds
        for metric, (_, model) in spaces.items():
            needed = least_images(metric, model.encode_image(self.real[:1]).shape[1])
            if min(images, len(self.real)) < needed:
                have = f"{images} of each encoder and attack are drawn, {len(self.real)} are real"
                said.append(f"{METRICS[metric].title} is left out: it needs {needed} images of each kind, and {have}")
        return said

    def said(self, setup: Setup) -> list[str]:
        """What is measured, and what is left out and why."""
        said, spaces = [f"[yellow]{escape(sentence)}[/]" for sentence in self.left_out(setup)], self.spaces()
        if "frechet" in spaces:
            told = f"KID and Frechet distance to {len(self.real)} images, features: {escape(spaces['frechet'][0])}"
            missing = escape("; ".join(self.missing))
            said.append(f"{told}[yellow]{' - ' if missing else ''}{missing}[/]")
        return said


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
    """A CLIP of open_clip ("ViT-B-16/openai"), or a CLIP folder or Hub id of transformers.

    FileNotFoundError or ValueError where its weights are not there, not whole or no numbers.
    """

    def __init__(self, name: str, device: str) -> None:
        if Path(name).is_dir() or (name.count("/") == 1 and not _open_clip_knows(name)):
            self.images, encoder = load_image_encoder(name, device=device), load_text_encoder(name, device=device)
            self.texts: Callable[[Sequence[str]], Tensor] = partial(_projected, encoder)
            self.text_fingerprint = encoder.fingerprint
            self.fingerprint = fingerprint(self.images.fingerprint, self.text_fingerprint)
            return
        if not _open_clip_knows(name):
            raise ValueError(
                f"--clip-score-model {name}: neither a folder nor an open_clip MODEL/WEIGHTS such as ViT-B-16/openai"
            )
        module, tokenizer = load_openclip(name)
        module = module.eval().to(device)
        self.images = wrap_image_encoder(module, name=name)
        self.texts = lambda texts: module.encode_text(tokenizer(list(texts)).to(device))
        self.text_fingerprint = wrap(module, tokenizer, name=name).fingerprint
        self.fingerprint = fingerprint(self.images.fingerprint, self.text_fingerprint)

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Image.Image]) -> Tensor:
        parts = (self.images.prepare(images[i : i + 32]) for i in range(0, len(images), 32))
        return torch.cat([self.images.embed(pixels) for pixels in parts]).cpu()

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return torch.cat([self.texts(texts[i : i + 64]) for i in range(0, len(texts), 64)]).float().cpu()


def _projected(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    return encoder.features(encoder.tokenize(texts), "projected")


def _open_clip_knows(name: str) -> bool:
    import open_clip

    return tuple(name.split("/", 1)) in open_clip.list_pretrained()


def read_images(folder: Path) -> list[Image.Image]:
    """Every image of a folder and its sub-folders in RGB; ValueError for fewer than two."""
    images = ImageFolder(folder)
    if len(images.names) < 2:
        raise ValueError(f"--real-images: {folder} holds {len(images.names)} images; distances need many")
    return [images.load(i) for i in range(len(images.names))]
