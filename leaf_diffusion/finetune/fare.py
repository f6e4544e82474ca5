"""FARE: an image tower whose features withstand small changes of pixels, the partner of a LEAF text tower.

Schlarmann et al. 2024, "Robust CLIP" (paper, section 3): || f_original(x) - f_theta(z) ||^2 over z within eps of x
in l-inf, found by PGD; no labels and no texts.
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPVisionModelWithProjection

from leaf_diffusion.attacks.images import APGD, PGD, FeatureDrift, project
from leaf_diffusion.encoders.image_encoder import ImageEncoder
from leaf_diffusion.finetune.anchors import distances, textfare_loss
from leaf_diffusion.finetune.card import Card, Figures, made_by, quoted
from leaf_diffusion.finetune.checkpoint import Row
from leaf_diffusion.finetune.config import FAREConfig as FAREConfig
from leaf_diffusion.finetune.images import Images, Loading, split_images
from leaf_diffusion.finetune.loop import OnLog, Task, hashed, train
from leaf_diffusion.finetune.save import save_encoder

ROWS = {
    label: (f"cosine_{key}", f"drift_{key}")
    for key, label in (("clean", "clean image"), ("noise", "random noise of size eps"), ("apgd", "APGD"))
}
_USE = """```python
from leaf_diffusion.encoders.image_encoder import load_image_encoder

encoder = load_image_encoder("this folder")
```"""


class AttackedImages(NamedTuple):
    pixels: Tensor
    anchors: Tensor


class PixelFeatures(nn.Module):  # type: ignore[misc]  # strict mode without torch's types
    """Pixels 0 to 1 to features: the one module that accelerate wraps."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.tower, self._features = encoder.module, encoder.features

    def forward(self, pixels: Tensor) -> Tensor:
        return self._features(pixels)


def finetune_image_encoder(
    encoder: ImageEncoder,
    images: Images,
    output: Path | str,
    config: FAREConfig | None = None,
    *,
    held_out: Images | None = None,
    on_log: OnLog | None = None,
) -> Path:
    """Finetune a copy of `encoder` (transformers') by FARE and save it in `output`; returns that folder.

    `held_out` images are measured on; default: a tenth of `images`, 256 at most. The folder is a Hugging Face one:
    safetensors, preprocessor_config.json, README.md with the figures; and training_log.jsonl. Images that cannot be
    read are left out.

    Continues, returns and raises as `train`; ValueError also for images or an encoder that cannot serve.
    """
    check_image_encoder(encoder)
    if held_out is None:
        images, held_out = split_images(images)
    with ThreadPoolExecutor(8) as threads:
        return train(FARE(encoder, images, held_out, config or FAREConfig(), threads), Path(output), on_log)


class FARE(Task[AttackedImages]):
    """Images under PGD, drawn back to the original's features of the clean ones."""

    examples = "images"
    config: FAREConfig

    def __init__(
        self, original: ImageEncoder, images: Images, held: Images, config: FAREConfig, threads: ThreadPoolExecutor
    ) -> None:
        super().__init__(config, len(images.names), original.device)
        self.original, self.images, self.held, self.loading = original, images, held, Loading(threads)
        self.attacker = PGD(eps=config.eps / 255, steps=config.attack_steps)

    def identity(self) -> dict[str, JsonValue]:
        names = {"images": hashed(self.images.names), "held_out": hashed(self.held.names)}
        return {**names, "encoder": self.original.fingerprint}

    def build(self, batches: int) -> nn.Module:
        self.tower = image_copy(self.original).to(self.accelerator.device)
        self.trained = ImageEncoder(self.tower, self.original.preprocessing, name="trained")
        return PixelFeatures(self.trained)

    def attack(self, number: int, seed: int) -> AttackedImages:
        images = self.loading.images(self.images, self.indices(number))
        clean = self.original.prepare(images).to(self.accelerator.device)
        anchors = self.original.embed(clean).to(self.accelerator.device)
        with self.accelerator.autocast():
            found = self.attacker.search(clean, FeatureDrift(self.trained.features, anchors), seed)
        return AttackedImages(found.pixels, anchors)

    def loss(self, model: nn.Module, batch: AttackedImages) -> Tensor:
        return textfare_loss(model(batch.pixels), batch.anchors)

    @cached_property
    def clean_pixels(self) -> Tensor:
        return self.original.prepare(self.loading.images(self.held, range(len(self.held.names))))

    @cached_property
    def targets(self) -> Tensor:
        """The original's features of the held-out images."""
        return self.original.embed(self.clean_pixels, self.config.batch_size)

    def measure(self, *, trained: bool) -> Figures:
        return image_figures(self.trained if trained else self.original, self.clean_pixels, self.targets, self.config)

    def notes(self) -> Row:
        return self.loading.notes()

    def held_out(self) -> dict[str, int]:
        return {"held_out": len(self.clean_pixels)}

    def card(self) -> Card:
        return Card(
            title=f"Image encoder finetuned with FARE (eps={self.config.eps:g}/255)",
            tags=("image-encoder",),
            examples="images",
            introduction=f"A `CLIPVisionModelWithProjection`, finetuned from {quoted(self.original.name)} with {made_by()} "
            "so that its features stay close to the original's of the clean image when every pixel moves by up to "
            f"{self.config.eps:g}/255 ([arXiv 2402.12336](https://arxiv.org/abs/2402.12336)).",
            protocol=f"{len(self.clean_pixels)} held-out images against the original's clean features; APGD of "
            f"{2 * self.config.attack_steps} steps is run anew on the tower that it measures. Drift: squared L2 over the "
            "features' mean squared norm.",
            columns={
                "cosine": "Cosine to the original's features of the clean image",
                "drift": "Drift from the original's features of the clean image",
            },
            rows=ROWS,
            strength={"eps": self.config.eps},
            use=_USE,
        )

    def save(self, card: str, output: Path) -> None:
        save_encoder(self.tower, self.original.processor, card, output, getattr(torch, self.config.save_dtype))


def check_image_encoder(encoder: ImageEncoder) -> None:
    """ValueError where it cannot be finetuned."""
    if not isinstance(encoder.module, CLIPVisionModelWithProjection):
        raise ValueError(
            f"{encoder.name} is no CLIPVisionModelWithProjection of transformers, which the finetuning needs: "
            "load the model's transformers version by load_image_encoder"
        )


def image_copy(encoder: ImageEncoder) -> nn.Module:
    """The image tower in float32, on its own, ready to train."""
    return copy.deepcopy(encoder.module).float().requires_grad_()


def image_figures(encoder: ImageEncoder, pixels: Tensor, targets: Tensor, config: FAREConfig) -> Figures:
    """Means over images, against `targets` [n, d], the original's features of the clean ones.

    `drift_*` is the squared L2 distance over the targets' mean squared norm, `cosine_*` the cosine; `*_clean` of the
    images as they are, `*_noise` with random noise of size eps, `*_apgd` under APGD of twice the training's steps on
    `encoder`. `accuracy_clean`: the share of images whose features are nearest (cosine) to the original's of the same
    image among all of them.
    """
    eps, parts = config.eps / 255, range(0, len(pixels), config.batch_size)
    signs = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
    attack, attacked = APGD(eps=eps, steps=2 * config.attack_steps), []
    for i in parts:
        part = slice(i, i + config.batch_size)
        clean = pixels[part].to(encoder.device)
        attacked.append(attack(clean, FeatureDrift(encoder.features, targets[part])).pixels.cpu())
    given = {"clean": pixels, "noise": project(pixels + eps * signs, pixels, eps), "apgd": torch.cat(attacked)}
    features = {name: encoder.embed(shown, config.batch_size) for name, shown in given.items()}
    nearest = (normalize(features["clean"], dim=-1) @ normalize(targets, dim=-1).T).argmax(1).cpu()
    accuracy = float((nearest == torch.arange(len(nearest))).float().mean())
    return distances(features, targets) | {"accuracy_clean": accuracy}
