"""Loaders of the world's trained parts; what `"world:<name>"` means."""

import json
from functools import cache
from typing import Any

import open_clip
import torch
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from leaf_diffusion.finetune.spelling import spelling_features, spelt
from leaf_diffusion.tokens.tokenizer import CLIP_VOCABULARY, clip_tokenizer
from leaf_diffusion.weights.files import load_weights
from leaf_diffusion.world.clip import new_clip, new_judge
from leaf_diffusion.world.paths import pipeline_path, weights
from leaf_diffusion.world.scenes import SIZE

EMBEDDING = "text_model.embeddings.token_embedding.weight"
SPELLING = "spelling"
FINETUNED = ("leaf", "typo-augmented")
IMAGE_TOWERS = ("original", "fare")


def _float(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def load_clip() -> CLIPModel:
    """The world's CLIP, the original: its text tower is the one in the pipeline's folder, stored once."""
    with no_init_weights():  # all are loaded
        clip = new_clip()
    state = _float(load_weights(weights("clip") / "model.safetensors"))
    text = _float(load_weights(pipeline_path() / "text_encoder" / "model.safetensors"))
    state |= {f"text_model.{key.removeprefix('text_model.')}": value for key, value in text.items()}
    clip.load_state_dict(state)
    return clip.eval()


def text_tower(clip: CLIPModel) -> CLIPTextModelWithProjection:
    """The text half of a CLIP as a model of its own (a copy)."""
    with no_init_weights():
        tower = CLIPTextModelWithProjection(clip.config.text_config)
    state = clip.state_dict()
    tower.load_state_dict(
        {key: value for key, value in state.items() if key.startswith(("text_model.", "text_projection."))}
    )
    return tower.eval()


def image_tower(clip: CLIPModel) -> CLIPVisionModelWithProjection:
    """The image half of a CLIP as a model of its own (a copy)."""
    config = clip.config.vision_config
    config.projection_dim = clip.config.projection_dim
    tower = CLIPVisionModelWithProjection(config)
    state = clip.state_dict()
    tower.load_state_dict({key: state[key] for key in tower.state_dict()})
    return tower.eval()


def load_world_image_encoder(name: str, **_: Any) -> tuple[CLIPVisionModelWithProjection, CLIPImageProcessor]:
    """(module, processor) of "original" or "fare"."""
    if name not in IMAGE_TOWERS:
        known = ", ".join(f"world:{n}" for n in IMAGE_TOWERS)
        raise ValueError(f"the embedded world has no image encoder {name!r}; it has {known}")
    tower = image_tower(load_clip())
    if name != "original":
        tower.load_state_dict(_float(load_weights(weights(name) / "model.safetensors")))
    side = {"height": SIZE, "width": SIZE}
    # pixels() of scenes.py: -1 to 1
    half = [0.5, 0.5, 0.5]
    return tower, CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=side, image_mean=half, image_std=half)


def overlay(original: dict[str, Tensor], finetuned: dict[str, Tensor], spelling: Tensor) -> dict[str, Tensor]:
    """What of a finetuned tower differs, float16: small tensors whole, of the token table the `spelling` vectors that
    were added to every row and the rows that moved besides.

    A caption world touches a fraction of the 49,408 tokens, so this is a few MB instead of 14.
    """
    table = finetuned[EMBEDDING] - _spelt(spelling)
    moved = ((original[EMBEDDING] - table).abs() > 1e-5).any(1)
    moved = moved.nonzero().flatten()
    parts = {key: value for key, value in finetuned.items() if key != EMBEDDING}
    parts |= {SPELLING: spelling, f"{EMBEDDING}.values": table[moved]}
    return {key: value.half().contiguous() for key, value in parts.items()} | {f"{EMBEDDING}.rows": moved.int()}


def apply_overlay(original: dict[str, Tensor], parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The finetuned tower's weights again."""
    state = {key: value for key, value in parts.items() if key != SPELLING and not key.startswith(EMBEDDING)}
    table = original[EMBEDDING].clone()
    table[parts[f"{EMBEDDING}.rows"].long()] = parts[f"{EMBEDDING}.values"]
    return state | {EMBEDDING: table + _spelt(parts[SPELLING])}


def _spelt(spelling: Tensor) -> Tensor:
    """The part of the token table [49408, width] that the vectors make up."""
    return spelt(_spelling_features(), spelling)


@cache
def _spelling_features() -> Tensor:
    return torch.from_numpy(spelling_features(clip_tokenizer().get_vocab(), CLIP_VOCABULARY))


def load_world_encoder(name: str, **_: Any) -> tuple[torch.nn.Module, PreTrainedTokenizerBase | None]:
    """(module, tokenizer) of "original", "leaf", "typo-augmented" or "judge" (an open_clip model, tokenizer None)."""
    if name == "judge":
        return load_judge_module(), None
    if name not in ("original", *FINETUNED):
        known = ", ".join(f"world:{n}" for n in ("original", *FINETUNED, "judge"))
        raise ValueError(f"the embedded world has no encoder {name!r}; it has {known}")
    tower = text_tower(load_clip())
    if name in FINETUNED:
        parts = _float(load_weights(weights(f"encoders/{name}") / "overlay.safetensors"))
        tower.load_state_dict(apply_overlay(tower.state_dict(), parts))
    return tower, clip_tokenizer()


def load_judge_module() -> open_clip.CLIP:
    """The open_clip model that judges."""
    judge = new_judge()
    judge.load_state_dict(_float(load_weights(weights("judge-clip") / "model.safetensors")))
    return judge.eval()


@cache
def seen_tokens() -> frozenset[int]:
    """The token ids that the world's CLIP read in training; others still have their random first embedding."""
    return frozenset(json.loads((weights("clip") / "seen_tokens.json").read_text()))
