"""Tiny seeded pipelines whose prompts are read by T5 or by a language model, with what draws or without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from tests import tiny
from tests.pipelines.test_leaf_flux import t5, t5_tokenizer

TEXTS = ["a red umbrella on a beach", "two cats and a dog", "<|im_start|>user describe the image <|im_end|>"] * 9
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
}  # fmt: skip


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with special tokens and a chat template, as Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<bos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", model_max_length=512
    )
    made.chat_template = CHAT
    return made


def pixart() -> PixArtSigmaPipeline:
    return PixArtSigmaPipeline(t5_tokenizer(), t5(), None, None, DPMSolverMultistepScheduler())


def pixart_alpha() -> PixArtAlphaPipeline:
    return PixArtAlphaPipeline(t5_tokenizer(), t5(), None, None, DPMSolverMultistepScheduler())


def sana() -> SanaPipeline:
    torch.manual_seed(0)
    encoder = Gemma2Model(Gemma2Config(vocab_size=320, sliding_window=8, **SIZES)).eval()
    return SanaPipeline(byte_level_tokenizer(), encoder, None, None, DPMSolverMultistepScheduler())


def z_image() -> ZImagePipeline:
    torch.manual_seed(0)
    encoder = Qwen3Model(Qwen3Config(vocab_size=320, **SIZES)).eval()
    return ZImagePipeline(FlowMatchEulerDiscreteScheduler(), None, encoder, byte_level_tokenizer(), None)


def qwen_image() -> QwenImagePipeline:
    torch.manual_seed(0)
    text = {**SIZES, "vocab_size": 320, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    del text["head_dim"]
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()
    return QwenImagePipeline(FlowMatchEulerDiscreteScheduler(), None, encoder, byte_level_tokenizer(), None)


def klein() -> Flux2KleinPipeline:
    torch.manual_seed(0)
    encoder = Qwen3ForCausalLM(Qwen3Config(vocab_size=320, **{**SIZES, "num_hidden_layers": 28})).eval()
    return Flux2KleinPipeline(FlowMatchEulerDiscreteScheduler(), None, encoder, byte_level_tokenizer(), None)


def lumina() -> Lumina2Pipeline:
    torch.manual_seed(0)
    encoder = Gemma2Model(Gemma2Config(vocab_size=320, sliding_window=8, **SIZES)).eval()
    return Lumina2Pipeline(None, FlowMatchEulerDiscreteScheduler(), None, encoder, byte_level_tokenizer())


LANGUAGES = {"pixart": pixart, "sana": sana, "z-image": z_image, "qwen-image": qwen_image}


def _pixart_parts() -> dict[str, torch.nn.Module]:
    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=3, caption_channels=32, in_channels=4,
        cross_attention_dim=24, use_additional_conditions=False,
    )  # fmt: skip
    return {"transformer": transformer, "vae": tiny.vae()}


def _sana_parts() -> dict[str, torch.nn.Module]:
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4, sample_size=8,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=32,
    )  # fmt: skip
    sides: dict[str, Any] = {
        f"{side}_block_types": ("ResBlock", "EfficientViTBlock") for side in ("encoder", "decoder")
    }
    sides |= {f"{side}_block_out_channels": (8, 8) for side in ("encoder", "decoder")}
    sides |= {f"{side}_qkv_multiscales": ((), (5,)) for side in ("encoder", "decoder")}
    sides |= {f"{side}_layers_per_block": (1, 1) for side in ("encoder", "decoder")}
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        **sides,
    )
    return {"transformer": transformer, "vae": vae}


def _lumina_parts() -> dict[str, torch.nn.Module]:
    transformer = Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=3,
        num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 2, 2), axes_lens=(512, 64, 64), cap_feat_dim=32,
    )  # fmt: skip
    return {"transformer": transformer, "vae": tiny.vae(**tiny.NEWER_VAE)}


def _z_image_parts() -> dict[str, torch.nn.Module]:
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32,
        axes_dims=[8, 4, 4], axes_lens=[1024, 32, 32],
    )  # fmt: skip
    for name, parameter in transformer.named_parameters():
        if "pad_token" in name:  # which are left as memory was
            torch.nn.init.normal_(parameter)
    return {"transformer": transformer, "vae": tiny.vae(**tiny.NEWER_VAE)}


def _qwen_parts() -> dict[str, torch.nn.Module]:
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False], latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )  # fmt: skip
    return {"transformer": transformer, "vae": vae}


def _klein_parts() -> dict[str, torch.nn.Module]:
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=96, timestep_guidance_channels=16, axes_dims_rope=[4, 4, 4, 4], guidance_embeds=False,
    )  # fmt: skip
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, use_quant_conv=False,
        use_post_quant_conv=False, **blocks,
    )  # fmt: skip
    return {"transformer": transformer, "vae": vae}


DRAWING: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, torch.nn.Module]]]] = {
    "pixart-alpha": (pixart_alpha, _pixart_parts),
    "pixart-sigma": (pixart, _pixart_parts),
    "sana": (sana, _sana_parts),
    "lumina": (lumina, _lumina_parts),
    "z-image": (z_image, _z_image_parts),
    "qwen-image": (qwen_image, _qwen_parts),
    "klein": (klein, _klein_parts),
}
"""What reads, and what draws."""


def drawing(name: str) -> Any:
    """The stock pipeline of a family, whole."""
    reading, parts = DRAWING[name]
    pipe = reading()
    torch.manual_seed(0)
    return type(pipe)(**pipe.components | {part: each.eval() for part, each in parts().items()})


def image(pipe: Any, prompt: str | list[str] | None = "a red umbrella", /, **options: object) -> np.ndarray:
    """A tiny image, without the sizes that are known to PixArt and Sana alone."""
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():  # matrix products round by how their memory is aligned
        for weight in part.parameters() if isinstance(part, torch.nn.Module) else ():
            if weight.data_ptr() % 64:
                weight.data = weight.data.clone()
    asked: dict[str, object] = {
        "num_inference_steps": 2,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(0),
    }
    if isinstance(pipe, PixArtAlphaPipeline | PixArtSigmaPipeline | SanaPipeline):
        asked["use_resolution_binning"] = False
    if isinstance(pipe, SanaPipeline):
        asked["complex_human_instruction"] = None  # 900 tokens of it
    if isinstance(pipe, Flux2KleinPipeline):
        asked["max_sequence_length"] = 64
    side = 32 if isinstance(pipe, SanaPipeline) else 16
    found: np.ndarray = pipe(prompt=prompt, height=side, width=side, **asked | options).images
    return found
