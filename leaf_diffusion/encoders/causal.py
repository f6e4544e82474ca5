"""What a causal text tower is made of, so that an engine can compute any subset of its tokens.

`causal_parts(encoder)` reads transformers and open_clip towers alike; what it does not know for certain it refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation, QuickGELUActivation

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder, token_table
from leaf_diffusion.encoders.openclip import OpenCLIPTextEncoder

QUICK = 1.702
"""QuickGELU(x) = x * sigmoid(1.702 x) = silu(1.702 x) / 1.702."""


class UnsupportedTowerError(ValueError):
    """A tower, or a part of it, that is not made of what is known here; the message says which part."""


@dataclass(frozen=True)
class Affine:
    """A linear layer or a layer norm: weight, bias (None: none) and, for a norm, epsilon."""

    weight: Tensor
    bias: Tensor | None
    eps: float = 0.0


@dataclass(frozen=True)
class Block:
    """One residual block: x + out(attention(qkv(norm1(x)))), then x + down(act(up(norm2(x))))."""

    norm1: Affine
    qkv: tuple[Affine, ...]
    """Query, key and value, or one layer that gives all three."""
    out: Affine
    norm2: Affine
    up: Affine
    quick: bool
    """Whether the activation is QuickGELU; else it is GELU."""
    down: Affine
    heads: int


@dataclass(frozen=True)
class CausalParts:
    """A tower: token embedding (a function of ids), positions [context, width], blocks, final norm, projection.

    A text is pooled at its first `eos_id`; behind its end, up to `context_length`, the tower reads `pad_id`.
    """

    embed: Callable[[Tensor], Tensor]
    positions: Tensor
    blocks: list[Block]
    norm: Affine
    projection: Affine | None
    context_length: int
    eos_id: int
    pad_id: int

    def tensors(self) -> list[Tensor]:
        """All weights but the token table."""
        affine = [self.norm, *([] if self.projection is None else [self.projection])]
        for block in self.blocks:
            affine += [block.norm1, *block.qkv, block.out, block.norm2, block.up, block.down]
        pairs = (tensor for each in affine for tensor in (each.weight, each.bias))
        return [self.positions, *(tensor for tensor in pairs if tensor is not None)]


def causal_parts(encoder: TextEncoder) -> CausalParts:
    """The parts of a transformers or open_clip tower, as views of its weights. Raises UnsupportedTowerError."""
    if isinstance(encoder, HFTextEncoder):
        parts = _transformers(encoder)
    elif isinstance(encoder, OpenCLIPTextEncoder):
        parts = _open_clip(encoder)
    else:
        raise UnsupportedTowerError(f"{type(encoder).__name__} is neither a transformers nor an open_clip tower")
    tensors = parts.tensors()
    if any(tensor.device.type == "meta" for tensor in tensors):
        raise UnsupportedTowerError("its weights are offloaded")
    if len({(tensor.device, tensor.dtype) for tensor in tensors}) > 1:
        raise UnsupportedTowerError("its weights are spread over several devices or precisions")
    width = parts.positions.shape[1]
    if any(block.out.weight.shape[0] != width or width % block.heads for block in parts.blocks):
        raise UnsupportedTowerError(f"its blocks do not fit its width of {width}")
    if len(parts.positions) < encoder.context_length:
        raise UnsupportedTowerError("it has fewer positions than its context")
    return parts


def _transformers(encoder: HFTextEncoder) -> CausalParts:
    model: Any = encoder.text_model
    inner = getattr(model, "text_model", model)
    check_hookless(encoder.module)
    blocks = []
    for layer in inner.encoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = tuple(read_linear(each) for each in (attention.q_proj, attention.k_proj, attention.v_proj))
        blocks.append(
            Block(
                _norm(layer.layer_norm1), qkv, read_linear(attention.out_proj), _norm(layer.layer_norm2),
                read_linear(mlp.fc1), _is_quick(mlp.activation_fn), read_linear(mlp.fc2), attention.num_heads,
            )
        )  # fmt: skip
    projection = None if encoder.projection is None else read_linear(encoder.projection)
    positions = inner.embeddings.position_embedding
    exactly(positions, nn.Embedding)
    norm = _norm(inner.final_layer_norm)
    return CausalParts(token_table(model), positions.weight, blocks, norm, projection, *_reading(encoder))


def _open_clip(encoder: OpenCLIPTextEncoder) -> CausalParts:
    tower: Any = encoder.tower
    check_hookless(encoder.module)
    blocks = []
    for block in tower.transformer.resblocks:
        if type(block).__name__ != "ResidualAttentionBlock" or hasattr(block, "ln_1_kv"):
            raise UnsupportedTowerError(f"its blocks are {type(block).__name__}")
        attention = block.attn
        exactly(attention, nn.MultiheadAttention)
        if attention.in_proj_weight is None or attention.bias_k is not None:
            raise UnsupportedTowerError("its attention has separate or extra keys")
        out, down = read_linear(attention.out_proj), read_linear(block.mlp.c_proj)
        blocks.append(
            Block(
                _norm(block.ln_1), (Affine(attention.in_proj_weight, attention.in_proj_bias),), _scaled(out, block.ls_1),
                _norm(block.ln_2), read_linear(block.mlp.c_fc), _is_quick(block.mlp.gelu), _scaled(down, block.ls_2),
                attention.num_heads,
            )
        )  # fmt: skip
    projection = tower.text_projection
    if isinstance(projection, nn.Module):
        projection = read_linear(projection)
    elif projection is not None:
        projection = Affine(projection.T, None)
    norm, positions = _norm(tower.ln_final), tower.positional_embedding
    return CausalParts(tower.token_embedding, positions, blocks, norm, projection, *_reading(encoder))


def _reading(encoder: TextEncoder) -> tuple[int, int, int]:
    return encoder.context_length, encoder.rows.eos_id, encoder.pad_id


def exactly(module: nn.Module, *classes: type[nn.Module]) -> None:
    """UnsupportedTowerError for a module of another class."""
    # a subclass (a LoRA layer, a quantised one) computes something else
    if type(module) not in classes:
        raise UnsupportedTowerError(f"it holds a {type(module).__name__} where a {classes[0].__name__} was expected")


def read_linear(module: nn.Module) -> Affine:
    """A linear layer, or a LoRA layer of PEFT as what it amounts to now. Raises UnsupportedTowerError."""
    base = getattr(module, "base_layer", None)
    if base is not None and type(module).__module__ == "peft.tuners.lora.layer":
        return _merged(module, base)
    exactly(module, nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
    assert isinstance(module, nn.Linear)
    return Affine(module.weight, module.bias)


def _merged(layer: Any, base: nn.Module) -> Affine:
    """A LoRA layer of PEFT as the linear layer that it amounts to now."""
    linear = read_linear(base)
    if layer.disable_adapters or layer.merged:  # merged: the base's weight holds the adapters already
        return linear
    if layer.lora_variant or any(layer.lora_bias.values()) or (layer.training and _drops(layer)):
        raise UnsupportedTowerError("it holds a LoRA layer with DoRA, biases or dropout: merge it")
    deltas = [layer.get_delta_weight(name) for name in layer.active_adapters if name in layer.lora_A]
    return Affine(sum(deltas, linear.weight).detach(), linear.bias)


def _drops(layer: Any) -> bool:
    return any(isinstance(each, nn.Dropout) and each.p > 0 for each in layer.lora_dropout.values())


def _norm(module: nn.Module) -> Affine:
    if not isinstance(module, nn.LayerNorm) or type(module).__name__ not in ("LayerNorm", "LayerNormFp32"):
        raise UnsupportedTowerError(f"it holds a {type(module).__name__} where a LayerNorm was expected")
    return Affine(module.weight, module.bias, module.eps)


def _is_quick(activation: Any) -> bool:
    if isinstance(activation, QuickGELUActivation) or type(activation).__name__ == "QuickGELU":
        return True
    exact = isinstance(activation, nn.GELU) and activation.approximate == "none"
    if exact or (isinstance(activation, GELUActivation) and activation.act is nn.functional.gelu):
        return False
    raise UnsupportedTowerError(f"its activation is {type(activation).__name__}")


def _scaled(layer: Affine, scale: nn.Module) -> Affine:
    if isinstance(scale, nn.Identity):
        return layer
    gamma = getattr(scale, "gamma", None)
    if type(scale).__name__ != "LayerScale" or not isinstance(gamma, Tensor):
        raise UnsupportedTowerError(f"its blocks end in a {type(scale).__name__}")
    gamma = gamma.detach()
    return Affine(layer.weight * gamma[:, None], None if layer.bias is None else layer.bias * gamma)


def check_hookless(module: nn.Module) -> None:
    """Offloading moves weights in hooks, and adapters may act in hooks: neither is seen from the weights."""
    for name, each in module.named_modules():
        hooks = [*each._forward_pre_hooks.values(), *each._forward_hooks.values()]
        # transformers' own, which stay once hidden states were asked for, only look on
        hooked = any(getattr(hook, "__module__", "") != "transformers.utils.output_capturing" for hook in hooks)
        if hooked or hasattr(each, "_hf_hook") or nn.utils.parametrize.is_parametrized(each):
            raise UnsupportedTowerError(f"{name or 'the model'} has hooks (offloading, adapters) or parametrisations")


def detached(affine: Affine, dtype: torch.dtype) -> Affine:
    """The same in another precision, without gradients (the very tensors where they fit already)."""
    bias = None if affine.bias is None else affine.bias.detach().to(dtype)
    return Affine(affine.weight.detach().to(dtype), bias, affine.eps)
