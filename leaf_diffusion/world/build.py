"""Train the embedded world, part by part; each part is a folder of fp16 safetensors with a card of its provenance."""

import json
import platform
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from leaf_diffusion.encoders.image_encoder import load_image_encoder
from leaf_diffusion.finetune.config import TextFAREConfig
from leaf_diffusion.finetune.fare import FAREConfig, finetune_image_encoder
from leaf_diffusion.finetune.save import SPELLING
from leaf_diffusion.tokens.tokenizer import clip_tokenizer
from leaf_diffusion.weights.files import load_weights
from leaf_diffusion.world.class_images import WorldImages
from leaf_diffusion.world.clip import (
    Features,
    clip_features,
    clip_figures,
    judge_features,
    new_clip,
    new_judge,
    train_contrastive,
)
from leaf_diffusion.world.corpus import Corpus, Mix, draw_corpus
from leaf_diffusion.world.diffusion import reconstruct, reconstruction_psnr, scheduler, train_unet, train_vae
from leaf_diffusion.world.figures import generation_figures, image_figures, text_figures
from leaf_diffusion.world.judge import KINDS, SceneJudge, judge_figures, train_judge
from leaf_diffusion.world.paths import weights, weights_root
from leaf_diffusion.world.robust import LEAF, TYPO_AUGMENTED, finetune_world
from leaf_diffusion.world.scenes import pixels, render, sample_scene
from leaf_diffusion.world.sources import load_clip, load_judge_module, load_world_encoder, overlay

Figures = dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """How a part is trained, besides what its module fixes."""

    steps: int
    seed: int
    lr: float
    batch: int
    images: int = 200_000
    """Size of the corpus, half of it twins."""


def halves(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state in half precision, as it ships."""
    return {key: (v.half() if v.is_floating_point() else v).contiguous().cpu() for key, v in state.items()}


def save_stock(model: Any, folder: Path) -> None:
    """Save a stock model as fp16; its configuration says fp32, which is what it is loaded as everywhere."""
    state = halves(model.state_dict())
    model.save_pretrained(folder)
    (file,) = folder.glob("*.safetensors")
    stored = load_weights(file)
    save_file(
        {key: state[key] if key in state else value.half() for key, value in stored.items()},
        file,
        metadata={"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    if "dtype" in config:
        config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def build_judge(recipe: Recipe, work: Path, device: torch.device) -> Figures:
    corpus = draw_corpus(recipe.images, recipe.seed, Mix(two=0.4, three=0.4, split=None, captions=1))
    model = train_judge(
        work, corpus, steps=recipe.steps, batch=recipe.batch, seed=recipe.seed, lr=recipe.lr, device=device
    )
    save_file(halves(model.state_dict()), target("scene-judge") / "model.safetensors")
    return judge_figures(SceneJudge.load())


def build_clip(recipe: Recipe, work: Path, device: torch.device) -> Figures:
    corpus = draw_corpus(recipe.images, recipe.seed)
    torch.manual_seed(recipe.seed)
    clip = new_clip().to(device)
    contrast("clip", clip, clip_features(clip), recipe, corpus, work)
    state = halves(clip.state_dict())
    save_file({k: v for k, v in state.items() if not k.startswith("text_model.")}, target("clip") / "model.safetensors")
    seen = corpus.rows.unique().tolist()
    (target("clip") / "seen_tokens.json").write_text(json.dumps(seen))
    pipeline = target("stable-diffusion")
    text = CLIPTextModel(clip.config.text_config)
    text.load_state_dict(_for_text_model(text, clip.state_dict()))
    save_stock(text, pipeline / "text_encoder")
    clip_tokenizer().save_pretrained(pipeline / "tokenizer")
    scheduler().save_pretrained(pipeline / "scheduler")
    return clip_figures(clip_features(load_clip())) | {"seen_tokens": float(len(seen))}


def contrast(name: str, model: nn.Module, features: Features, recipe: Recipe, corpus: Corpus, work: Path) -> None:
    """Train a CLIP by its recipe."""
    train_contrastive(
        name,
        model,
        features,
        corpus,
        steps=recipe.steps,
        batch=recipe.batch,
        seed=recipe.seed,
        lr=recipe.lr,
        folder=work,
    )


def _for_text_model(text: CLIPTextModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The text half of a CLIP's state, under the names of this transformers version's CLIPTextModel."""
    flat = {key.removeprefix("text_model."): value for key, value in state.items() if key.startswith("text_model.")}
    return {key: flat[key.removeprefix("text_model.")] for key in text.state_dict()}


def build_judge_clip(recipe: Recipe, work: Path, device: torch.device) -> Figures:
    corpus = draw_corpus(recipe.images, recipe.seed)
    torch.manual_seed(recipe.seed)
    model = new_judge().to(device)
    contrast("judge-clip", model, judge_features(model), recipe, corpus, work)
    save_file(
        halves({k: v for k, v in model.state_dict().items() if k != "attn_mask"}),
        target("judge-clip") / "model.safetensors",
    )
    return clip_figures(judge_features(load_judge_module()))


def build_vae(recipe: Recipe, work: Path, device: torch.device) -> Figures:
    corpus = draw_corpus(recipe.images, recipe.seed, Mix(small=0.2, captions=1))
    vae = train_vae(work, corpus, steps=recipe.steps, batch=recipe.batch, seed=recipe.seed, lr=recipe.lr, device=device)
    save_stock(vae, target("stable-diffusion") / "vae")
    vae = AutoencoderKL.from_pretrained(target("stable-diffusion") / "vae", dtype=torch.float32).eval()
    return {"psnr_db": reconstruction_psnr(vae)}


def build_unet(recipe: Recipe, work: Path, device: torch.device) -> Figures:
    mix = Mix(two=0.4, three=0.25, small=0.05, filler=0.1, typo=0.02)
    corpus = draw_corpus(recipe.images, recipe.seed, mix)
    pipeline = weights("stable-diffusion")
    vae = AutoencoderKL.from_pretrained(pipeline / "vae", dtype=torch.float32).eval().to(device)
    text = CLIPTextModel.from_pretrained(pipeline / "text_encoder", use_safetensors=True).eval().to(device)
    unet = train_unet(work, corpus, vae, text, steps=recipe.steps, batch=recipe.batch, seed=recipe.seed, lr=recipe.lr)
    save_stock(unet, pipeline / "unet")
    assemble(pipeline).save_config(pipeline)
    stock = StableDiffusionPipeline.from_pretrained(pipeline, dtype=torch.float32).to(device)
    return generation_figures(stock) | vae_figures(stock.vae)


def vae_figures(vae: AutoencoderKL) -> Figures:
    """The scene judge on reconstructions of real scenes: the most that any denoiser could have."""
    rng = random.Random("vae figures")
    figures = {}
    for shares, name in KINDS:
        scenes = [sample_scene(rng, split=None, **shares) for _ in range(250)]
        restored = reconstruct(vae, pixels(map(render, scenes))).cpu()
        images = restored.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
        figures[f"reconstructed_{name}"] = sum(SceneJudge.load().correct(list(images), scenes)) / len(scenes)
    return figures


def assemble(folder: Path) -> StableDiffusionPipeline:
    """The stock pipeline from its parts, so that its index can be written."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True),
        tokenizer=clip_tokenizer(),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_robust(recipe: TextFAREConfig, work: Path, device: torch.device, *, name: str) -> Figures:
    folder = finetune_world(recipe, work / name, device=device)
    original = load_world_encoder("original")[0].state_dict()
    parts = overlay(original, load_weights(folder / "model.safetensors"), load_weights(folder / SPELLING)["spelling"])
    save_file(parts, target(f"encoders/{name}") / "overlay.safetensors")
    return text_figures(f"world:{name}")


def build_fare(recipe: FAREConfig, work: Path, device: torch.device) -> Figures:
    original = load_image_encoder("world:original", device=device)
    images, held_out = WorldImages(40_000), WorldImages(128, seed=1)
    folder = finetune_image_encoder(original, images, work / "fare", recipe, held_out=held_out)
    save_file(halves(load_weights(folder / "model.safetensors")), target("fare") / "model.safetensors")
    return image_figures("world:fare", recipe.eps)


FARE = FAREConfig(
    eps=4, attack_steps=5, batch_size=48, max_steps=4000, lr=1e-3, warmup_steps=100, seed=7, eval_every=1000,
    checkpoint_every=100,
)  # fmt: skip
"""At 4/255 no image of the original's classes holds."""

PARTS: dict[str, tuple[Callable[..., Figures], Recipe | TextFAREConfig | FAREConfig]] = {
    "scene-judge": (build_judge, Recipe(3500, 2, 2e-3, 512)),
    "clip": (build_clip, Recipe(1500, 1, 1e-3, 1024)),
    "judge-clip": (build_judge_clip, Recipe(5100, 101, 1e-3, 1024)),
    "vae": (build_vae, Recipe(600, 3, 2e-3, 256)),
    "unet": (build_unet, Recipe(3300, 4, 1e-3, 512)),
    "encoders/leaf": (partial(build_robust, name="leaf"), LEAF),
    "encoders/typo-augmented": (partial(build_robust, name="typo-augmented"), TYPO_AUGMENTED),
    "fare": (build_fare, FARE),
}
"""What trains each part, and how."""


def target(part: str) -> Path:
    """The folder of a part, made when needed."""
    folder = weights_root() / part
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build_part(part: str, work: Path, device: torch.device) -> Figures:
    """Train one part unless its card is there; a part that was broken off goes on from its last checkpoint."""
    card = target("cards") / f"{part.replace('/', '-')}.json"
    if card.exists():
        return json.loads(card.read_text())["figures"]
    started = monotonic()
    build, recipe = PARTS[part]
    figures = build(recipe, work, device)
    where = (
        f"{platform.machine()}, {torch.get_num_threads()} threads"
        if device.type == "cpu"
        else torch.cuda.get_device_name(device)
    )
    content = {
        "part": part,
        "recipe": asdict(recipe),
        "code": "leaf_diffusion.world",
        "hardware": where,
        "torch": torch.__version__.split("+")[0],
        "seconds_of_last_call": round(monotonic() - started),
        "figures": {key: round(value, 4) for key, value in figures.items()},
    }
    card.write_text(json.dumps(content, indent=2) + "\n")
    for checkpoint in work.glob(f"{part.split('/')[-1]}.checkpoint.safetensors"):
        checkpoint.unlink()
    return figures
