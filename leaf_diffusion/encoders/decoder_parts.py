"""What a language model is made of, so that an engine can compute any subset of its tokens.

`decoder_parts(encoder)` reads Qwen2, Qwen2.5-VL's text side, Qwen3, Gemma-2, Mistral and Llama of transformers alike; what it does
not know for certain it refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.activations import GELUTanh, SiLUActivation

from leaf_diffusion.encoders.causal import Affine, UnsupportedTowerError, check_hookless, read_linear
from leaf_diffusion.encoders.decoder import DecoderTextEncoder

LAYERS = tuple(f"{name}DecoderLayer" for name in ("Qwen2", "Qwen2_5_VL", "Qwen3", "Gemma2", "Mistral", "Llama"))
ROTATIONS = ("default", "linear", "llama3", "yarn", "mrope")
"""Ways to turn queries and keys that depend on the place alone, and not on how long a text is."""


@dataclass(frozen=True)
class RMSNorm:
    """x * weight over the root mean square of x."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class DecoderBlock:
    """One residual block: x + after1(out(attention(qkv(norm1(x))))), then x + after2(down(act(gate(h)) * up(h))), h = norm2(x).

    `norm_q`, `norm_k`: of the queries and keys of a head (Qwen3). `after1`, `after2`: Gemma-2's. `cap`: logits of the attention
    go through cap * tanh(logit / cap). `window`: a token reads so many tokens before it, itself among them.
    """

    norm1: RMSNorm
    query: Affine
    key: Affine
    value: Affine
    norm_q: RMSNorm | None
    norm_k: RMSNorm | None
    out: Affine
    after1: RMSNorm | None
    norm2: RMSNorm
    gate: Affine
    up: Affine
    act: Literal["silu", "gelu_tanh"]
    down: Affine
    after2: RMSNorm | None
    head_width: int
    scale: float
    cap: float | None
    window: int | None


@dataclass(frozen=True)
class DecoderParts:
    """A language model without its head: token embedding (a function of ids), blocks, final norm.

    `cos`, `sin` [longest, head width]: how queries and keys are turned at each place.
    """

    embed: Callable[[Tensor], Tensor]
    blocks: list[DecoderBlock]
    norm: RMSNorm
    cos: Tensor
    sin: Tensor


def decoder_parts(encoder: DecoderTextEncoder) -> DecoderParts:
    """The parts of a language model, as views of its weights where they can be. Raises UnsupportedTowerError."""
    tower: Any = encoder.tower
    check_hookless(encoder.module)
    if any(tensor.device.type == "meta" for tensor in tower.parameters()):
        raise UnsupportedTowerError("its weights are offloaded")
    if len({(tensor.device, tensor.dtype) for tensor in tower.parameters()}) > 1:
        raise UnsupportedTowerError("its weights are spread over several devices or precisions")
    blocks = [_block(layer) for layer in tower.layers]
    cos, sin = _turns(tower, encoder.context_length)
    return DecoderParts(tower.embed_tokens, blocks, _norm(tower.norm), cos, sin)


def _turns(tower: Any, longest: int) -> tuple[Tensor, Tensor]:
    kind = (tower.config.rope_parameters or {}).get("rope_type", "default")
    if kind not in ROTATIONS:
        raise UnsupportedTowerError(f'its rotary positions are of the type "{kind}"')
    places = torch.arange(longest, device=tower.embed_tokens.weight.device)[None]
    with torch.no_grad():
        if type(tower).__name__ == "Qwen2_5_VLTextModel":  # of text, time, height and width are one
            places = places[None].expand(3, -1, -1)
        cos, sin = tower.rotary_emb(places.new_zeros(1, dtype=torch.float32), places)
    return cos.flatten(0, -3)[0], sin.flatten(0, -3)[0]


def _block(layer: Any) -> DecoderBlock:
    if type(layer).__name__ not in LAYERS:
        raise UnsupportedTowerError(f"its blocks are {type(layer).__name__}")
    attention, mlp = layer.self_attn, layer.mlp
    gemma = type(layer).__name__ == "Gemma2DecoderLayer"
    window = getattr(attention, "sliding_window", None)
    if type(layer).__name__ == "MistralDecoderLayer":
        window = attention.config.sliding_window
    return DecoderBlock(
        norm1=_norm(layer.input_layernorm),
        query=read_linear(attention.q_proj),
        key=read_linear(attention.k_proj),
        value=read_linear(attention.v_proj),
        norm_q=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        norm_k=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        out=read_linear(attention.o_proj),
        after1=_norm(layer.post_attention_layernorm) if gemma else None,
        norm2=_norm(layer.pre_feedforward_layernorm if gemma else layer.post_attention_layernorm),
        gate=read_linear(mlp.gate_proj),
        up=read_linear(mlp.up_proj),
        act=_activation(mlp.act_fn),
        down=read_linear(mlp.down_proj),
        after2=_norm(layer.post_feedforward_layernorm) if gemma else None,
        head_width=attention.head_dim,
        scale=attention.scaling,
        cap=getattr(attention, "attn_logit_softcapping", None),
        window=window,
    )


def _norm(module: nn.Module) -> RMSNorm:
    name = type(module).__name__
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not name.endswith("RMSNorm") or not isinstance(weight, Tensor) or eps is None:
        raise UnsupportedTowerError(f"it holds a {name} where an RMSNorm was expected")
    return RMSNorm(1.0 + weight.detach().float() if name == "Gemma2RMSNorm" else weight.detach().float(), float(eps))


def _activation(activation: Any) -> Literal["silu", "gelu_tanh"]:
    if isinstance(activation, SiLUActivation | nn.SiLU):
        return "silu"
    if isinstance(activation, GELUTanh) or (isinstance(activation, nn.GELU) and activation.approximate == "tanh"):
        return "gelu_tanh"
    raise UnsupportedTowerError(f"its activation is {type(activation).__name__}")
