"""Pictures a second of each Leaf pipeline against the stock one, in turn in one process, and of the layouts.

    python benchmarks/pipelines.py --rounds 7 --batch 4

CPU time of the process, one thread; each figure is the median over rounds, each ratio the median of the ratios within
rounds (a round measures all ways, in an order that turns), so that a busy machine hits all alike.
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

from leaf_diffusion.encoders import clip_tokenizer
from leaf_diffusion.pipelines import LeafStableDiffusionPipeline, LeafStableDiffusionXLPipeline
from leaf_diffusion.pipelines.speed import set_layout
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


def pairs() -> dict[str, tuple[Any, Any]]:
    """Leaf and stock pipeline around the same components: the embedded world, and random SD and XL shapes."""
    torch.manual_seed(0)
    world = LeafStableDiffusionPipeline.from_pretrained("world", text_encoder="world:leaf")
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    sd = {
        "unet": unet(128), "vae": vae(), "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1), "tokenizer": clip_tokenizer(),
        "text_encoder": tower(CLIPTextModel, 128), **none,
    }  # fmt: skip
    time_ids = {"addition_embed_type": "text_time", "addition_time_embed_dim": 32, "use_linear_projection": True}
    xl = {
        "unet": unet(128 + 192, projection_class_embeddings_input_dim=6 * 32 + 192, **time_ids), "vae": vae(),
        "scheduler": EulerDiscreteScheduler(), "tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer(),
        "text_encoder": tower(CLIPTextModel, 128), "add_watermarker": False,
        "text_encoder_2": tower(CLIPTextModelWithProjection, 192, hidden_act="gelu"),
    }  # fmt: skip
    stock_world = StableDiffusionPipeline.from_pretrained(pipeline_path(), text_encoder=world.text_encoder)
    stock_world.register_modules(unet=world.unet, vae=world.vae)
    return {
        "world": (world, stock_world),
        "random SD": (LeafStableDiffusionPipeline(**sd), StableDiffusionPipeline(**sd)),
        "random XL": (LeafStableDiffusionXLPipeline(**xl), StableDiffusionXLPipeline(**xl)),
    }


def seconds(pipe: Any, options: argparse.Namespace, channels_last: bool) -> float:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=layout)
    prompts = (PROMPTS * options.batch)[: options.batch]
    generators = [torch.Generator().manual_seed(seed) for seed in range(options.batch)]
    side = 32
    start = time.process_time()
    pipe(prompts, num_inference_steps=options.steps, generator=generators, height=side, width=side)
    return time.process_time() - start


def measure(name: str, leaf: Any, stock: Any, options: argparse.Namespace) -> None:
    ways = {"stock": (stock, False), "leaf": (leaf, False), "leaf, channels_last": (leaf, True)}
    for pipe in (leaf, stock):
        pipe.set_progress_bar_config(disable=True)
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(options.rounds + 1):
        order = list(ways) if number % 2 else list(reversed(ways))
        for way in order:
            needed = seconds(ways[way][0], options, ways[way][1])
            if number:  # the first round warms up
                taken[way].append(needed)
    for way, times in taken.items():
        ratios = [mine / theirs for mine, theirs in zip(times, taken["stock"], strict=True)]
        pictures, ratio = options.batch / statistics.median(times), statistics.median(ratios)
        print(
            f"{name}: {way}: {pictures:.2f} pictures a CPU-second, {ratio:.3f} of the stock pipeline's time", flush=True
        )


def compiled(name: str, leaf: Any, options: argparse.Namespace) -> None:
    before = statistics.median(seconds(leaf, options, False) for _ in range(options.rounds))
    start = time.perf_counter()
    set_layout(leaf, compiled=True)
    seconds(leaf, options, False)
    first = time.perf_counter() - start
    after = statistics.median(seconds(leaf, options, False) for _ in range(options.rounds))
    print(f"{name}: compiled: {after / before:.3f} of the time uncompiled, the first call {first:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--models", nargs="+", default=["world", "random SD", "random XL"])
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which needs a C++ compiler")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, (leaf, stock) in ((name, pair) for name, pair in pairs().items() if name in options.models):
        measure(name, leaf, stock, options)
        if options.compile and name == "world":
            compiled(name, leaf, options)


if __name__ == "__main__":
    main()
