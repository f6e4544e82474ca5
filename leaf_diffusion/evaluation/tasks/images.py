"""Zero-shot image classification tasks: images with classes, what the classes are called, and attacks on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.image_encoder import ImageEncoder, load_image_encoder
from leaf_diffusion.evaluation.encoders import EncoderName
from leaf_diffusion.images import ImageFolder
from leaf_diffusion.text.decoding import parse_json, utf8
from leaf_diffusion.world.captions import zero_shot_prompts
from leaf_diffusion.world.class_images import class_images

TEMPLATES = ("a photo of a {}",)
AT_ONCE = 256


@dataclass(frozen=True)
class ImageTask:
    """Images by number, class by class; `texts` are what each class is called, one or several captions."""

    names: Sequence[str]
    labels: Sequence[int]
    classes: Sequence[str]
    texts: Sequence[Sequence[str]]
    load: Callable[[int], Image.Image]
    digest: str
    """Of images, labels and texts, for the identity of a run."""
    clusters: Sequence[str] = ()
    """Images of one name fall together."""

    def spread(self, limit: int | None) -> list[int]:
        """Numbers of `limit` images, spread over all of them, and so over the classes."""
        n = len(self.names) if limit is None else min(limit, len(self.names))
        return [i * len(self.names) // n for i in range(n)]

    def named(self, numbers: Sequence[int]) -> list[list[str | int]]:
        """Names and labels, for the identity of a run."""
        return [[self.names[i], self.labels[i]] for i in numbers]

    @torch.inference_mode()
    def class_features(self, encoder: TextEncoder) -> Tensor:
        """The classes as a text tower sees them: normalised mean of their captions' features, [classes, d]."""
        rows = encoder.tokenize(encoder.preprocess([text for texts in self.texts for text in texts]))
        parts = [normalize(encoder.features(rows[i : i + AT_ONCE]), dim=-1) for i in range(0, len(rows), AT_ONCE)]
        classes = torch.cat(parts).split([len(texts) for texts in self.texts])
        return normalize(torch.stack([features.mean(0) for features in classes]), dim=-1)


def world_images() -> ImageTask:
    """Drawn images, one a colour and noun."""
    images, labels = class_images()
    prompts = zero_shot_prompts()
    names = [f"{colour} {noun}" for _, noun, colour in prompts]
    texts = [[text] for text, _, _ in prompts]
    digest = hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()
    nouns = [prompts[i][1] for i in labels]
    return ImageTask([names[i] for i in labels], labels, names, texts, images.__getitem__, digest, nouns)


def folder_images(folder: Path, class_names: Path | None, templates: Sequence[str]) -> ImageTask:
    """A folder with a sub-folder of images a class (ImageNet's layout); a class is called what its sub-folder is, with
    spaces for underscores, or what the JSON of `class_names` says: {sub-folder: name}, or a list in the sub-folders' order.

    ValueError or FileNotFoundError for a folder, names or templates that cannot serve.
    """
    found = ImageFolder(folder)
    parts = [Path(name).parts for name in found.names]
    if loose := next((path for path in parts if len(path) < 2), None):
        raise ValueError(f"{folder}: {loose[0]} lies in no sub-folder; a task needs a sub-folder for each class")
    folders = list(dict.fromkeys(path[0] for path in parts))
    if len(folders) < 2:
        raise ValueError(f"{folder}: a classification needs two classes (sub-folders) at least, got {folders}")
    names = [name.replace("_", " ") for name in folders] if class_names is None else _names(class_names, folders)
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"--templates {template!r} has no {{}} where the class name goes")
    if not templates:
        raise ValueError("--templates needs one template at least")
    texts = [[template.replace("{}", name) for template in templates] for name in names]
    number = {name: i for i, name in enumerate(folders)}
    sizes = [(name, found.path(i).stat().st_size) for i, name in enumerate(found.names)]
    return ImageTask(
        found.names,
        [number[path[0]] for path in parts],
        names,
        texts,
        found.load,
        hashlib.sha256(json.dumps([sizes, texts]).encode()).hexdigest(),
    )


def image_anchors(folder: Path, classes: Sequence[str], tower: ImageEncoder, per_class: int) -> Tensor:
    """Classes as an image tower sees them, normalised mean features [classes, d] of up to `per_class` images of each.

    `folder` has a sub-folder of images for each class, called like it; ValueError names one that is missing.
    """
    shown = folder_images(folder, None, TEMPLATES)
    if missing := sorted(set(classes) - set(shown.classes)):
        raise ValueError(f"--anchors {folder} has no sub-folder {missing[0]!r}, which texts are labelled with")
    found = []
    for name in classes:
        mine = [i for i, label in enumerate(shown.labels) if shown.classes[label] == name][:per_class]
        features = tower.embed(tower.prepare([shown.load(i) for i in mine]), 64)
        found.append(normalize(normalize(features, dim=-1).mean(0), dim=0))
    return torch.stack(found)


def seen_by_tower(
    folder: Path, classes: Sequence[str], source: str, per_class: int, device: str, encoders: Mapping[str, TextEncoder]
) -> Tensor:
    """`image_anchors` of the image tower `source`; ValueError for a text encoder whose features are of another size."""
    seen = image_anchors(folder, classes, load_image_encoder(source, device=device), per_class)
    for label, encoder in encoders.items():
        if (width := encoder.features(encoder.tokenize(["a"])).shape[1]) != seen.shape[1]:
            raise ValueError(f"--encoders {label} has features of {width}, --image-encoder of {seen.shape[1]}")
    return seen


def _names(path: Path, folders: Sequence[str]) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"--class-names: no such file: {path}")
    content = parse_json(utf8(path.read_bytes(), str(path)), str(path))
    if isinstance(content, list):
        if len(content) != len(folders):
            raise ValueError(f"{path}: {len(content)} names for {len(folders)} sub-folders")
        content = dict(zip(folders, content, strict=True))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected {{sub-folder: name}} or a list of names")
    for folder in folders:
        if not isinstance(content.get(folder), str) or not content[folder].strip():
            raise ValueError(f"{path}: no name for the sub-folder {folder!r}")
    return [content[folder] for folder in folders]


def load_images(source: Path | None, class_names: Path | None, templates: Sequence[str]) -> ImageTask:
    """The world's task, or a folder's."""
    if source is None:
        if class_names is not None:
            raise ValueError("--class-names belongs to --images FOLDER")
        if tuple(templates) != TEMPLATES:
            raise ValueError("--templates belongs to --images FOLDER; the world has its own captions")
        return world_images()
    return folder_images(source, class_names, templates)


def load_image_encoders(names: Sequence[str], device: str) -> dict[str, ImageEncoder]:
    """Label -> image tower; ValueError for labels given twice or a defence, which is for texts."""
    parsed = [EncoderName.parse(text, world=True) for text in names]
    if len({name.label for name in parsed}) < len(parsed) or not parsed:
        raise ValueError(f"image towers need different labels, got {[n.label for n in parsed]}; write LABEL=SOURCE")
    if defended := [name.label for name in parsed if name.defence]:
        raise ValueError(f"{defended[0]}: a defence corrects texts, an image tower takes none")
    return {name.label: load_image_encoder(name.source, device=device) for name in parsed}
