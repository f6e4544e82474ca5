"""Images a second of each Leaf pipeline against the stock one, in turn in one process, and of the layouts.

    python benchmarks/pipelines.py --rounds 7 --batch 4
    python benchmarks/pipelines.py --device cuda --dtype fp16 --models "SD-1.5 shape" --steps 20

CPU time of the process, one thread, or with `--device cuda` the time of day between synchronised ends; each figure is the
median over rounds, each ratio the median of the ratios within rounds (a round measures all ways, in an order that turns), so
that a busy machine hits all alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import leaf_diffusion  # noqa: F401 - mends torchvision before diffusers imports it

# isort: split
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from leaf_diffusion.diffusion.speed import set_layout
from leaf_diffusion.encoders import clip_tokenizer
from leaf_diffusion.pipelines import LeafStableDiffusionPipeline, LeafStableDiffusionXLPipeline
from leaf_diffusion.world import pipeline_path

PROMPTS = ["a photo of a red umbrella", "two blue cats", "a green boat on a table", "an old house at night"]


def tower(kind: Any, width: int, **changes: Any) -> Any:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 4, "num_attention_heads": 4}
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "projection_dim": width}
    return kind(CLIPTextConfig(**sizes | ids | changes)).eval()


def unet(cross: int, **changes: Any) -> UNet2DConditionModel:
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "sample_size": 16}
    blocks |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "block_out_channels": (32, 64)}
    return UNet2DConditionModel(**blocks | {"cross_attention_dim": cross, "attention_head_dim": 8} | changes).eval()


def vae() -> AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(32, 64), latent_channels=4, **blocks).eval()


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MODELS = ("world", "random SD", "random XL", "SD-1.5 shape")
SIDES = {"SD-1.5 shape": 512}
"""Height and width of the images; 32 for all others."""


def pair(name: str, device: torch.device) -> tuple[Any, Any]:
    """Leaf and stock pipeline around the same components: the embedded world, random SD and XL shapes of toy size, and
    Stable Diffusion 1.5 with random weights (its time does not depend on what it has learnt)."""
    torch.manual_seed(0)
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if name == "world":
        world = LeafStableDiffusionPipeline.from_pretrained("world", text_encoder="world:leaf")
        stock_world = StableDiffusionPipeline.from_pretrained(pipeline_path(), text_encoder=world.text_encoder)
        stock_world.register_modules(unet=world.unet, vae=world.vae)
        return world, stock_world
    if name == "random XL":
        time_ids = {"addition_embed_type": "text_time", "addition_time_embed_dim": 32, "use_linear_projection": True}
        xl = {
            "unet": unet(128 + 192, projection_class_embeddings_input_dim=6 * 32 + 192, **time_ids), "vae": vae(),
            "scheduler": EulerDiscreteScheduler(), "tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer(),
            "text_encoder": tower(CLIPTextModel, 128), "add_watermarker": False,
            "text_encoder_2": tower(CLIPTextModelWithProjection, 192, hidden_act="gelu"),
        }  # fmt: skip
        return LeafStableDiffusionXLPipeline(**xl), StableDiffusionXLPipeline(**xl)
    sd = {"scheduler": DDIMScheduler(clip_sample=False, steps_offset=1), "tokenizer": clip_tokenizer(), **none}
    if name == "random SD":
        sd |= {"unet": unet(128), "vae": vae(), "text_encoder": tower(CLIPTextModel, 128)}
    else:
        four = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        with torch.device(device):  # a billion random weights, drawn where they are used
            sd |= {
                "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval(),
                "vae": AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **four).eval(),
                "text_encoder": tower(CLIPTextModel, 768, num_hidden_layers=12, num_attention_heads=12),
            }
    return LeafStableDiffusionPipeline(**sd), StableDiffusionPipeline(**sd)


def clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(pipe: Any, options: argparse.Namespace, channels_last: bool, side: int) -> float:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=layout)
    prompts = (PROMPTS * options.batch)[: options.batch]
    generators = [torch.Generator().manual_seed(seed) for seed in range(options.batch)]
    start = clock(pipe.device)
    pipe(
        prompts,
        num_inference_steps=options.steps,
        generator=generators,
        height=side,
        width=side,
        output_type="pt",
    )
    return clock(pipe.device) - start


def measure(name: str, leaf: Any, stock: Any, options: argparse.Namespace) -> None:
    side, unit = SIDES.get(name, 32), "CPU-second" if leaf.device.type == "cpu" else "second"
    ways = {"stock": (stock, False), "leaf": (leaf, False), "leaf, channels_last": (leaf, True)}
    for pipe in (leaf, stock):
        pipe.set_progress_bar_config(disable=True)
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(options.rounds + 1):
        order = list(ways) if number % 2 else list(reversed(ways))
        for way in order:
            needed = seconds(ways[way][0], options, ways[way][1], side)
            if number:  # the first round warms up
                taken[way].append(needed)
    for way, times in taken.items():
        ratios = [mine / theirs for mine, theirs in zip(times, taken["stock"], strict=True)]
        images, ratio = options.batch / statistics.median(times), statistics.median(ratios)
        print(f"{name}: {way}: {images:.2f} images a {unit}, {ratio:.3f} of the stock pipeline's time", flush=True)


def compiled(name: str, leaf: Any, options: argparse.Namespace) -> None:
    side = SIDES.get(name, 32)
    before = statistics.median(seconds(leaf, options, False, side) for _ in range(options.rounds))
    start = time.perf_counter()
    set_layout(leaf, compiled=True)
    seconds(leaf, options, False, side)
    first = time.perf_counter() - start
    after = statistics.median(seconds(leaf, options, False, side) for _ in range(options.rounds))
    print(f"{name}: compiled: {after / before:.3f} of the time uncompiled, the first call {first:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS[:3])
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which needs a C++ compiler")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, one thread", options.dtype)
    for name in options.models:
        leaf, stock = pair(name, device)
        for pipe in (leaf, stock):
            pipe.to(device, DTYPES[options.dtype])
        measure(name, leaf, stock, options)
        if options.compile:
            compiled(name, leaf, options)


if __name__ == "__main__":
    main()
