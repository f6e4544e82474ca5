"""The world's Stable Diffusion: a small AutoencoderKL and UNet in stock classes, trained by flow matching.

Source: Lipman et al. 2023 (flow matching); logit-normal times as in Esser et al. 2024. The scheduler is diffusers'
`DPMSolverMultistepScheduler` with flow sigmas, since `StableDiffusionPipeline` calls what the flow-match Euler one lacks.
"""

import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel

from leaf_diffusion.world.corpus import EOS, LENGTH, Corpus, floats
from leaf_diffusion.world.fit import fit
from leaf_diffusion.world.scenes import SIZE, pixels, render, sample_scene

LATENTS, LATENT_SIZE = 8, SIZE // 4
DROPPED_CAPTIONS = 0.1


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder: 3 x 64 x 64 to 8 x 16 x 16."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def train_vae(
    folder: Path, corpus: Corpus, *, steps: int, batch: int, seed: int, lr: float, device: torch.device
) -> AutoencoderKL:
    """Train the autoencoder; its latents end with mean 0 and variance 1 a channel (folded into the 1x1 convolutions)."""
    torch.manual_seed(seed)
    vae = new_vae().to(device, memory_format=torch.channels_last)
    images = corpus.images.to(device)

    def loss(step: int, rng: random.Random) -> Tensor:
        shown = torch.randint(len(corpus), (batch,)).to(device)
        x = floats(images[shown]).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            restored = vae.decode(posterior.sample()).sample.float()
        kl = posterior.kl().float().mean() / (LATENTS * LATENT_SIZE**2)
        return F.mse_loss(restored, x) + 0.3 * F.l1_loss(restored, x) + 1e-3 * kl

    def report(step: int) -> str:
        return f"PSNR {reconstruction_psnr(vae):.2f} dB"

    fit(
        "vae",
        [vae],
        loss,
        steps=steps,
        lr=lr,
        seed=seed,
        folder=folder,
        weight_decay=1e-4,
        betas=(0.9, 0.99),
        average=0.995,
        report=report,
    )
    normalise_latents(vae)
    return vae


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, *, n: int = 2000) -> None:
    """Fold each latent channel's mean and scale into quant_conv and post_quant_conv, so that scaling_factor 1 is right."""
    rng = random.Random("latent statistics")
    latents = encode(vae, pixels(render(sample_scene(rng, three=0.25)) for _ in range(n)))
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:LATENTS] /= std.view(-1, 1, 1, 1)
    quant.bias[:LATENTS] = (quant.bias[:LATENTS] - mean) / std
    quant.bias[LATENTS:] -= 2 * std.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std.view(1, -1, 1, 1)


@torch.inference_mode()
def encode(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """The posterior's mean, [n, 8, 16, 16]."""
    return torch.cat([vae.encode(chunk.to(vae.device)).latent_dist.mode() for chunk in x.split(250)])


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Encode and decode pixels [n, 3, 64, 64] in -1..1."""
    return torch.cat([vae.decode(z).sample.clamp(-1, 1) for z in encode(vae, x).split(250)])


def reconstruction_psnr(vae: AutoencoderKL, *, n: int = 256, seed: int = 5) -> float:
    """Peak signal to noise ratio in dB over scenes that no training shows."""
    rng = random.Random(f"psnr {seed}")
    x = pixels(render(sample_scene(rng, three=0.25, split=None)) for _ in range(n))
    return 10 * math.log10(4 / F.mse_loss(reconstruct(vae, x).cpu(), x).item())


def new_unet() -> UNet2DConditionModel:
    """An untrained denoiser: cross-attention (width 128) at every resolution, as small things are bound to their words there."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENTS,
        out_channels=LATENTS,
        block_out_channels=(32, 64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> DPMSolverMultistepScheduler:
    """The stock scheduler that samples a flow-matching model."""
    return DPMSolverMultistepScheduler(
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        flow_shift=1.0,
        final_sigmas_type="zero",
        steps_offset=1,
    )


def train_unet(
    folder: Path,
    corpus: Corpus,
    vae: AutoencoderKL,
    text: CLIPTextModel,
    *,
    steps: int,
    batch: int,
    seed: int,
    lr: float,
) -> UNet2DConditionModel:
    """Train the denoiser on the corpus, conditioned on the last states of `text`, the original tower.

    One caption in ten is replaced by the empty one (classifier-free guidance).
    """
    device = vae.device
    latents = torch.cat([encode(vae, floats(part)).half() for part in corpus.images.split(2000)])
    empty = torch.full((1, LENGTH), EOS, dtype=torch.int32, device=device)
    empty[0, 0] = EOS - 1
    rows = corpus.rows.to(device)
    torch.manual_seed(seed)
    unet = new_unet().to(device)
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # plain attention is faster than the fused one at this size
    unet = unet.to(memory_format=torch.channels_last)

    def loss(step: int, rng: random.Random) -> Tensor:
        shown, told = (chosen.to(device) for chosen in corpus.pairs(batch, rng))
        clean = latents[shown].float()
        read = torch.where(torch.rand(batch, 1, device=device) < DROPPED_CAPTIONS, empty, rows[told])
        time = torch.sigmoid(torch.randn(batch, device=device))
        noise = torch.randn_like(clean)
        mixed = torch.lerp(clean, noise, time.view(-1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                condition = text(read.long()).last_hidden_state
            flow = unet(mixed, time * 1000, condition).sample
        return F.mse_loss(flow.float(), noise - clean)

    fit(
        "unet",
        [unet],
        loss,
        steps=steps,
        lr=lr,
        seed=seed,
        folder=folder,
        weight_decay=1e-3,
        betas=(0.9, 0.99),
        flat=0.4,
        average=0.998,
    )
    return unet
