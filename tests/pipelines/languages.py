"""Tiny seeded pipelines whose prompts are read by T5 or by a language model; what draws is left out."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Lumina2Pipeline,
    PixArtSigmaPipeline,
    QwenImagePipeline,
    SanaPipeline,
    ZImagePipeline,
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
