"""Text towers of open_clip: causal transformers pooled at end-of-text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from leaf_diffusion.encoders.base import Defence, PooledTextEncoder
from leaf_diffusion.tokens.tokenizer import CLIP_VOCABULARY, RowTokenizer
from leaf_diffusion.weights.errors import loading
from leaf_diffusion.weights.files import check_finite, read_header

PAD = 0  # what open_clip fills its token tensors with


class OpenCLIPTextEncoder(PooledTextEncoder):
    """The text tower of an open_clip `CLIP`, `CustomTextCLIP` or `TextTransformer`, used as it is.

    Without `tokenizer` it is open_clip's own `SimpleTokenizer` (which cleans with ftfy and HTML entities).
    ValueError for towers that are not causal or not pooled at end-of-text (CoCa, SigLIP, Hugging Face towers).
    """

    def __init__(
        self, module: nn.Module, tokenizer: Any = None, *, name: str | None = None, defence: Defence | None = None
    ) -> None:
        tower = getattr(module, "text", module)
        pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
        problems = [
            (
                not hasattr(tower, "token_embedding") or not hasattr(tower, "ln_final"),
                "it is no open_clip text transformer",
            ),
            (getattr(tower, "attn_mask", None) is None, "its attention is not causal"),
            (getattr(tower, "cls_emb", None) is not None, "it pools a class token (CoCa)"),
            (pool not in ("argmax", "eos"), f"it pools {pool!r} instead of end-of-text"),
        ]
        if found := [text for wrong, text in problems if wrong]:
            raise ValueError(f"{name or type(module).__name__} cannot be used as a text encoder: {'; '.join(found)}")
        self.tower = tower
        vocabulary, context = self.tower.token_embedding.weight.shape[0], self.tower.positional_embedding.shape[0]
        if tokenizer is None:
            if vocabulary != CLIP_VOCABULARY:
                raise ValueError(
                    f"the tower embeds {vocabulary} tokens, CLIP's tokenizer has {CLIP_VOCABULARY}: pass tokenizer=..."
                )
            from open_clip.tokenizer import SimpleTokenizer

            tokenizer = SimpleTokenizer(context_length=context)
        rows = RowTokenizer(tokenizer)
        eos = getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))
        if (rows.max_id if pool == "argmax" else eos) != rows.eos_id:
            raise ValueError(f"the tower pools {pool!r}, which is not the tokenizer's end-of-text ({rows.eos_id})")
        super().__init__(
            module, rows, name=name or type(module).__name__, context_length=context, pad_id=PAD, defence=defence
        )

    @property
    def has_projection(self) -> bool:
        return self.tower.text_projection is not None

    def token_embedding(self) -> Tensor:
        return self.tower.token_embedding.weight

    def _states(self, ids: Tensor, embeds: Tensor | None, layer: int) -> Tensor:
        tower, length = self.tower, ids.shape[1]
        cast_dtype = tower.transformer.get_cast_dtype()
        x = (tower.token_embedding(ids) if embeds is None else embeds).to(cast_dtype)
        x = x + tower.positional_embedding[:length].to(cast_dtype)
        mask = tower.attn_mask[:length, :length]
        if layer == -1:
            return tower.ln_final(tower.transformer(x, attn_mask=mask))
        _, between = tower.transformer.forward_intermediates(x, attn_mask=mask)
        return [x, *between][layer]

    def _project(self, pooled: Tensor) -> Tensor:
        projection = self.tower.text_projection
        return projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        for name, tensor in self.tower.state_dict(keep_vars=True).items():
            if not name.startswith("visual.") and name not in ("logit_scale", "logit_bias"):
                yield name, tensor

    def architecture(self) -> str:
        block = self.tower.transformer.resblocks[0]
        return f"open_clip {type(block).__name__} {block.attn.num_heads} {block.mlp}"


def load_openclip(name: str) -> tuple[nn.Module, Any]:
    """Loader of "openclip:ARCHITECTURE/PRETRAINED", the second a tag of open_clip or a local .safetensors file.

    Raises ValueError for unknown names and for weights that exist only as a pickle, FileNotFoundError when they cannot
    be had.
    """
    import open_clip
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    architecture, _, pretrained = name.partition("/")
    if architecture not in open_clip.list_models() or not pretrained:
        raise ValueError(
            f'"openclip:{name}" should read openclip:ARCHITECTURE/PRETRAINED, '
            "such as openclip:ViT-L-14-quickgelu/openai; open_clip.list_pretrained() lists them all"
        )
    path, config = Path(pretrained).expanduser(), get_pretrained_cfg(architecture, pretrained)
    if not path.is_file():
        if not config:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
            raise FileNotFoundError(
                f"{architecture} has no weights {pretrained!r}: neither a file nor one of the tags {tags}"
            )
        try:
            path = Path(download_pretrained(config))
        except Exception as error:  # any of a dozen network and Hub errors
            raise FileNotFoundError(f"the weights of openclip:{name} could not be downloaded: {error}") from error
    if path.suffix != ".safetensors":
        raise ValueError(
            f"openclip:{name} comes as a pickle ({path.name}), which is not opened here: use safetensors weights"
        )
    stored = read_header(path).entries
    quick = {"force_quick_gelu": True} if config.get("quick_gelu") else {}
    with loading(str(path), f"it does not fit {architecture}"):
        model = open_clip.create_model(architecture, pretrained=str(path), precision="fp32", **quick)
        for key, value in model.state_dict().items():  # open_clip would stretch position embeddings of another size
            if key in stored and stored[key].shape != tuple(value.shape):
                raise ValueError(
                    f"the tensor {key!r} is {list(stored[key].shape)}, {architecture} has {list(value.shape)}"
                )
    check_finite(path, model.state_dict().items())
    return model, open_clip.get_tokenizer(architecture)


__all__ = ["OpenCLIPTextEncoder", "load_openclip"]
