"""Text towers of transformers: CLIPTextModelWithProjection, CLIPTextModel, and the text half of CLIPModel."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from leaf_diffusion.encoders.base import Defence, PooledTextEncoder
from leaf_diffusion.tokens.tokenizer import RowTokenizer

LEGACY_EOS = 2  # configs from before transformers 4.31: pool at the largest token id, which is CLIP's end-of-text


def text_model_of(module: nn.Module) -> nn.Module:
    """The transformer without projection inside any of the CLIP text classes; ValueError for other models."""
    if isinstance(module, (CLIPTextModelWithProjection, CLIPModel)):
        return module.text_model
    if isinstance(module, CLIPTextModel):
        return module
    raise ValueError(
        f"{type(module).__name__} is no CLIP text tower; "
        "expected CLIPTextModelWithProjection, CLIPModel or CLIPTextModel of transformers"
    )


def text_config_of(module: nn.Module) -> CLIPTextConfig:
    """The text half's configuration."""
    config = module.config
    return getattr(config, "text_config", config)


def token_table(text_model: nn.Module) -> nn.Embedding:
    """The token embedding of a CLIP text model (flat in transformers 5.23, one level deeper in older versions)."""
    inner = getattr(text_model, "text_model", text_model)
    return inner.embeddings.token_embedding


def computes_on(module: nn.Module) -> torch.device:
    """Where a CLIP text model computes: where its weights are, unless accelerate brings them to a device for each call."""
    table = token_table(text_model_of(module))
    for each in (module, table):
        device = getattr(getattr(each, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return table.weight.device


def check_pooling(config: CLIPTextConfig, tokenizer: Any) -> None:
    """ValueError where the model would not pool at the tokenizer's end-of-text."""
    eos = tokenizer.eos_token_id if hasattr(tokenizer, "eos_token_id") else tokenizer.eot_token_id
    if config.eos_token_id == LEGACY_EOS != eos:
        largest = max(tokenizer.get_vocab().values()) if hasattr(tokenizer, "get_vocab") else tokenizer.vocab_size - 1
        if largest != eos:
            raise ValueError(
                f"config.eos_token_id=2 pools at the largest token id, "
                f"but end-of-text ({eos}) is not the largest ({largest}): "
                f"set config.eos_token_id={eos}"
            )
    elif config.eos_token_id != eos:
        raise ValueError(
            f"the model pools at token {config.eos_token_id} (config.eos_token_id) "
            f"but the tokenizer ends texts with {eos}: "
            "pass the tokenizer that belongs to the model"
        )


class HFTextEncoder(PooledTextEncoder):
    """A transformers CLIP text tower. `module` is used as it is: neither copied, cast, moved nor switched to eval.

    `projection` [width -> d] replaces a projection that the module lacks (the text encoder of a Stable Diffusion
    pipeline is a CLIPTextModel). Raises ValueError for models that are no CLIP text tower or a tokenizer that misfits.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Any,
        *,
        name: str | None = None,
        defence: Defence | None = None,
        projection: nn.Linear | None = None,
    ) -> None:
        self.text_model = text_model_of(module)
        self.config = text_config_of(module)
        own = getattr(module, "text_projection", None)
        self.projection: nn.Linear | None = own if own is not None else projection
        check_pooling(self.config, tokenizer)
        rows = RowTokenizer(tokenizer)
        limit = min(self.config.max_position_embeddings, int(getattr(tokenizer, "model_max_length", None) or 1 << 30))
        super().__init__(
            module,
            rows,
            name=name or type(module).__name__,
            context_length=limit,
            pad_id=rows.eos_id if rows.pad_id is None else rows.pad_id,
            defence=defence,
        )

    @property
    def has_projection(self) -> bool:
        return self.projection is not None

    @property
    def device(self) -> torch.device:
        return computes_on(self.module)

    @property
    def table(self) -> nn.Embedding:
        """The module that looks tokens up."""
        return token_table(self.text_model)

    def token_embedding(self) -> Tensor:
        return self.table.weight

    def _states(self, ids: Tensor, embeds: Tensor | None, layer: int) -> Tensor:
        # a hook that swaps the embeddings in leaves the forward pass to the model's own class
        hook = self.table.register_forward_hook(lambda *_: embeds) if embeds is not None else nullcontext()
        if self.text_model is not self.module and hasattr(self.module, "_hf_hook"):
            self.module._hf_hook.pre_forward(self.module)  # offloading waits for calls of the whole module
        with hook:
            output = self.text_model(input_ids=ids, output_hidden_states=layer != -1)
        return output.last_hidden_state if layer == -1 else output.hidden_states[layer]

    def _project(self, pooled: Tensor) -> Tensor:
        assert self.projection is not None
        place = self.projection.weight.device
        return self.projection(pooled if place.type == "meta" else pooled.to(place))

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        for name, tensor in self.text_model.state_dict(keep_vars=True).items():
            yield name.removeprefix("text_model."), tensor
        if self.projection is not None:
            yield "text_projection.weight", self.projection.weight

    def architecture(self) -> str:
        c = self.config
        return f"clip_text {c.hidden_act} {c.num_attention_heads} {c.layer_norm_eps}"
