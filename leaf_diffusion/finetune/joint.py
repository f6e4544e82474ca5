"""Both towers finetuned together: TextFARE and FARE in one loss, and what only the pair can lose.

The paper finetunes its encoders apart and names that as a limit. Here each batch is captions with their images: both are
attacked (LEAF on the text tower, PGD on the image tower, each against its own frozen original), both features are
drawn back, and the similarities of attacked captions with attacked images are held to the originals' of the clean pairs.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, normalize

from leaf_diffusion.attacks import LeafAttack
from leaf_diffusion.attacks.images import PGD, FeatureDrift
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.encoders.image_encoder import ImageEncoder
from leaf_diffusion.finetune.anchors import attack_captions, bucketed, embed, relative
from leaf_diffusion.finetune.card import Card, Figures, made_by, quoted
from leaf_diffusion.finetune.checkpoint import Row
from leaf_diffusion.finetune.config import JointConfig as JointConfig
from leaf_diffusion.finetune.fare import check_image_encoder, image_copy
from leaf_diffusion.finetune.images import Loading, Pairs
from leaf_diffusion.finetune.loop import OnLog, Task, hashed, train
from leaf_diffusion.finetune.save import save_encoder
from leaf_diffusion.finetune.tower import check_encoder, trainable_copy
from leaf_diffusion.text import constraint_from_name

HELD_OUT_RHO = 50
ROWS = {
    "both clean": ("recall_clean",),
    "captions attacked": ("recall_text",),
    "images attacked": ("recall_image",),
    "both attacked": ("recall_both",),
    "drift of attacked captions": ("drift_text",),
    "drift of attacked images": ("drift_image",),
}


class AttackedPairs(NamedTuple):
    rows: list[list[int]]
    pixels: Tensor
    text_anchors: Tensor
    image_anchors: Tensor


class PairFeatures(nn.Module):  # type: ignore[misc]  # strict mode without torch's types
    """Token rows and pixels to the features of both towers: the one module that accelerate wraps."""

    def __init__(self, towers: nn.Module, text: TextEncoder, image: ImageEncoder) -> None:
        super().__init__()
        self.towers, self._text, self._image = towers, text, image

    def forward(self, rows: list[list[int]], pixels: Tensor) -> tuple[Tensor, Tensor]:
        return bucketed(self._text.features, rows), self._image.features(pixels)


def pair_loss(
    texts: Float[Tensor, "n d"],
    images: Float[Tensor, "n d"],
    clean_texts: Float[Tensor, "n d"],
    clean_images: Float[Tensor, "n d"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Mean Kullback-Leibler divergence, both ways of reading the batch, of softmaxed cosines from the originals'."""

    def logits(a: Tensor, b: Tensor) -> Tensor:
        return normalize(a.float(), dim=-1) @ normalize(b.float(), dim=-1).T / temperature

    found, wanted = logits(texts, images), logits(clean_texts, clean_images)
    both = ((found, wanted), (found.T, wanted.T))
    parts = [kl_div(log_softmax(f, -1), log_softmax(w, -1), reduction="batchmean", log_target=True) for f, w in both]
    return (parts[0] + parts[1]) / 2


def finetune_both(
    text: TextEncoder,
    image: ImageEncoder,
    pairs: Pairs,
    output: Path | str,
    config: JointConfig | None = None,
    *,
    held_out: Pairs,
    on_log: OnLog | None = None,
) -> Path:
    """Finetune copies of both towers of one CLIP, on one device; returns `output`, which holds the folders `text` and
    `image`.

    Continues, returns and raises as `train`; ValueError also for towers or pairs that cannot serve.
    """
    original = check_encoder(text)
    original.require_projection()
    check_image_encoder(image)
    if image.device != original.device:
        raise ValueError(f"the text tower is on {original.device}, the image tower on {image.device}: load both on one")
    with ThreadPoolExecutor(8) as threads:
        task = Joint(original, image, pairs, held_out, config or JointConfig(), threads)
        return train(task, Path(output), on_log)


class Joint(Task[AttackedPairs]):
    """Captions and their images, both attacked, drawn back to the originals' features and similarities."""

    examples, clean = "pairs", "recall_clean"
    config: JointConfig

    def __init__(
        self,
        text: HFTextEncoder,
        image: ImageEncoder,
        pairs: Pairs,
        held: Pairs,
        config: JointConfig,
        threads: ThreadPoolExecutor,
    ) -> None:
        super().__init__(config, len(pairs.names), text.device)
        self.text, self.image, self.pairs, self.held, self.loading = text, image, pairs, held, Loading(threads)
        self.leaf = LeafAttack(rho=config.rho, slots=config.slots)
        self.pgd = PGD(eps=config.eps / 255, steps=config.attack_steps)
        self.constraint = constraint_from_name(config.constraint)

    def identity(self) -> dict[str, JsonValue]:
        names = {"pairs": hashed(self.pairs.names), "held_out": hashed(self.held.names)}
        return {**names, "text": self.text.fingerprint, "image": self.image.fingerprint}

    def build(self, batches: int) -> nn.Module:
        device = self.accelerator.device
        self.text_tower, self.image_tower = trainable_copy(self.text).to(device), image_copy(self.image).to(device)
        self.tower = nn.ModuleDict({"text": self.text_tower, "image": self.image_tower})
        self.texts = HFTextEncoder(self.text_tower, self.text.tokenizer, name="trained")
        self.images = ImageEncoder(self.image_tower, self.image.preprocessing, name="trained")
        return PairFeatures(self.tower, self.texts, self.images)

    def attack(self, number: int, seed: int) -> AttackedPairs:
        device = self.accelerator.device
        captions, drawn = self.loading.pairs(self.pairs, self.indices(number))
        clean = self.image.prepare(drawn).to(device)
        text_anchors, image_anchors = embed(self.text, captions).to(device), self.image.embed(clean).to(device)
        with self.accelerator.autocast():
            attacked = attack_captions(
                self.leaf, self.texts, captions, text_anchors, k=self.config.k, constraint=self.constraint, seed=seed
            )
            pixels = self.pgd.search(clean, FeatureDrift(self.images.features, image_anchors), seed).pixels
        return AttackedPairs(self.texts.tokenize(attacked), pixels, text_anchors, image_anchors)

    def loss(self, model: nn.Module, batch: AttackedPairs) -> Tensor:
        said, seen = model(batch.rows, batch.pixels)
        text, image = batch.text_anchors, batch.image_anchors
        apart = relative(said, text) + relative(seen, image)
        return apart + self.config.pair_weight * pair_loss(said, seen, text, image, self.config.temperature)

    @cached_property
    def shown(self) -> tuple[list[str], list[Image.Image]]:
        """Captions and images that are measured on."""
        return self.loading.pairs(self.held, range(len(self.held.names)))

    def measure(self, *, trained: bool) -> Figures:
        towers = (self.texts, self.images) if trained else (self.text, self.image)
        return pair_figures(*towers, self.text, self.image, *self.shown, self.config)

    def notes(self) -> Row:
        return self.loading.notes()

    def held_out(self) -> dict[str, int]:
        return {"held_out": len(self.shown[0])}

    def card(self) -> Card:
        return Card(
            title="CLIP towers finetuned together",
            tags=(),
            examples="pairs",
            introduction=f"The text tower (`text`) of {quoted(self.text.name)} and the image tower (`image`) of "
            f"{quoted(self.image.name)}, finetuned together with {made_by()}: attacked captions and attacked images are "
            "drawn back to the originals' clean features, and their similarities to the originals'.",
            protocol=f"Recall@1 of images by captions among {len(self.shown[0])} held-out pairs; attacks are run anew on "
            "the towers that they measure. Drift: squared L2 over the original's mean squared norm.",
            columns={"": "Recall@1 of images by captions, or relative drift"},
            rows=ROWS,
            strength={"k": self.config.k, "eps": self.config.eps},
        )

    def save(self, card: str, output: Path) -> None:
        dtype = getattr(torch, self.config.save_dtype)
        for part, tower, processor in (
            ("text", self.text_tower, self.text.tokenizer),
            ("image", self.image_tower, self.image.processor),
        ):
            (output / part).mkdir(exist_ok=True)
            save_encoder(tower, processor, card, output / part, dtype)


def pair_figures(
    text: TextEncoder,
    image: ImageEncoder,
    text_original: TextEncoder,
    image_original: ImageEncoder,
    captions: list[str],
    drawn: Sequence[Image.Image],
    config: JointConfig,
) -> Figures:
    """Recall@1 among these pairs, of images by captions, each clean or attacked: `recall_clean`, `recall_text` (the
    captions attacked), `recall_image`, `recall_both`; and the relative losses `drift_text`, `drift_image`.

    Attacks: LEAF with rho 50 and PGD of twice the training's steps, on the towers that are measured. Pairs whose captions
    are equal count as one another's.
    """
    clean = image.prepare(drawn).to(image.device)
    text_anchor, image_anchor = embed(text_original, captions), image_original.embed(clean).to(image.device)
    attacked = attack_captions(
        LeafAttack(rho=HELD_OUT_RHO), text, captions, text_anchor, k=config.k,
        constraint=constraint_from_name(config.constraint), seed=0,
    )  # fmt: skip
    pgd = PGD(eps=config.eps / 255, steps=2 * config.attack_steps)
    parts = range(0, len(clean), config.batch_size)
    moved = torch.cat([
        pgd.search(clean[i : i + config.batch_size], FeatureDrift(image.features, image_anchor[i : i + config.batch_size]), 0).pixels
        for i in parts
    ])  # fmt: skip
    said = {"clean": embed(text, captions), "attacked": embed(text, attacked)}
    seen = {"clean": image.embed(clean), "attacked": image.embed(moved)}
    same = torch.tensor([[a == b for b in captions] for a in captions])

    def recall(texts: str, images: str) -> float:
        cosines = normalize(said[texts], dim=-1) @ normalize(seen[images].to(said[texts].device), dim=-1).T
        return float(same[torch.arange(len(captions)), cosines.argmax(1).cpu()].float().mean())

    return {
        "recall_clean": recall("clean", "clean"),
        "recall_text": recall("attacked", "clean"),
        "recall_image": recall("clean", "attacked"),
        "recall_both": recall("attacked", "attacked"),
        "drift_text": float(relative(said["attacked"], text_anchor)),
        "drift_image": float(relative(seen["attacked"].to(image_anchor.device), image_anchor)),
    }
