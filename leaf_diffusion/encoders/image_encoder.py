"""Image towers behind one interface: images to features of the joint space, differentiable, pixels in 0 to 1.

A tower normalises inside `features`, so that an attack moves pixels as a person sees them (paper, section 4).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPVisionModelWithProjection
from transformers.utils.hub import cached_file

from leaf_diffusion.encoders import sources
from leaf_diffusion.encoders.convert_config import image_processor
from leaf_diffusion.images import to_rgb
from leaf_diffusion.weights.errors import loading, looks_like_path
from leaf_diffusion.weights.files import check_finite
from leaf_diffusion.weights.fingerprints import fingerprint
from leaf_diffusion.weights.models import Where, load_config, load_model

PROCESSOR = "preprocessor_config.json"
_SPARE = ("text_model.", "text_projection.", "logit_scale")  # the other half of a whole CLIP


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes pixels [3, *size] in 0 to 1 (`prepare`), and what `features` subtracts and divides by."""

    prepare: Callable[[Sequence[Image.Image]], Tensor]
    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]
    description: str
    """All of it as text, for the fingerprint."""


class ImageEncoder:
    """An image tower of transformers (CLIPVisionModelWithProjection, CLIPModel) or open_clip, used as it is.

    `module` is neither copied, moved nor switched to eval.
    """

    def __init__(
        self, module: nn.Module, preprocessing: Preprocessing, *, name: str, processor: CLIPImageProcessor | None = None
    ) -> None:
        self.module, self.preprocessing, self.name, self.processor = module, preprocessing, name, processor
        self._tower = tower_of(module, name)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def prepare(self, images: Sequence[Image.Image]) -> Float[Tensor, "n 3 h w"]:
        """Images resized and cropped as the model's own processor does, float32 in 0 to 1, on the CPU."""
        if not images:
            return torch.empty(0, 3, *self.preprocessing.size)
        return self.preprocessing.prepare([to_rgb(image) for image in images]).clamp(0, 1)

    def features(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Unnormalised features of the joint space, float32. Gradients flow while autograd is on.

        ValueError for pixels of another size than `prepare` gives.
        """
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, *self.preprocessing.size):
            raise ValueError(f"{self.name} takes pixels [n, 3, {self.preprocessing.size}], got {tuple(pixels.shape)}")
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (self.preprocessing.mean, self.preprocessing.std))  # fmt: skip
        normalised = (pixels.to(self.device) - mean) / std
        return self._tower(normalised.to(self.dtype)).float()

    @torch.no_grad()
    def embed(self, pixels: Float[Tensor, "n 3 h w"], at_once: int = 256) -> Float[Tensor, "n d"]:
        """`features` without gradients, so many images at a time. ValueError for features with NaN or infinity."""
        found = torch.cat([self.features(part) for part in pixels.split(at_once)])
        if not (fine := torch.isfinite(found).all(1)).all():
            raise ValueError(
                f"{self.name}: the features of image {int(fine.logical_not().nonzero()[0])} hold NaN or infinity"
            )
        return found

    @property
    def fingerprint(self) -> str:
        """sha256 hex over the image half's weights as stored, architecture and preprocessing."""
        return fingerprint(self._weights(), f"{_architecture(self.module)}\n{self.preprocessing.description}\n")

    def _weights(self) -> Iterable[tuple[str, Tensor]]:
        halves = ("vision_model.", "visual_projection.", "visual.")
        return ((name, each) for name, each in self.module.state_dict().items() if name.startswith(halves))


def load_image_encoder(
    source: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> ImageEncoder:
    """An image tower from "world:original", "world:fare", "openclip:ARCHITECTURE/PRETRAINED", a folder or a Hub id of a
    CLIPModel or CLIPVisionModelWithProjection (with `subfolder="image_encoder"`: of a pipeline). Loads safetensors only.

    Preprocessing is the model's own; a folder without `preprocessor_config.json` (robust CLIP repositories often say
    "use the base model's") gets CLIP's, at the size that its configuration names.

    Raises FileNotFoundError where nothing is found, ValueError for pickles, damaged files and other models.
    """
    named = sources.split(str(source), images=True)
    if named is not None:
        if revision is not None or subfolder is not None:
            raise ValueError(f'"{source}" has no revision or subfolder: these belong to folders and Hub ids')
        module, processor = sources.load(*named, images=True)
    else:
        module, processor = _from_transformers(str(source), revision, subfolder or "", dtype)
    module = module.eval().requires_grad_(False).to(device=device, dtype=dtype)
    check_finite(str(source), module.state_dict().items())
    return wrap_image_encoder(module, processor, name=str(source))


def wrap_image_encoder(module: nn.Module, processor: Any = None, *, name: str | None = None) -> ImageEncoder:
    """The encoder around a module: of transformers with its `CLIPImageProcessor`, of open_clip without any."""
    name = name or type(module).__name__
    if isinstance(processor, CLIPImageProcessor):
        return ImageEncoder(module, _by_processor(processor, module, name), name=name, processor=processor)
    if hasattr(getattr(module, "visual", None), "preprocess_cfg"):
        return ImageEncoder(module, _by_open_clip(module.visual), name=name)
    raise ValueError(
        f"{name} does not say how its images are preprocessed: pass the CLIPImageProcessor of a transformers model; "
        "models of open_clip.create_model say it themselves"
    )


def tower_of(module: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """Normalised pixels to features; ValueError for models that are no CLIP image tower."""
    if isinstance(module, (CLIPModel, CLIPVisionModelWithProjection)):
        found = module
        return lambda x: found.visual_projection(found.vision_model(x).pooler_output)
    if hasattr(module, "visual"):
        return module.visual
    raise ValueError(
        f"{name}: {type(module).__name__} has no image tower with a projection into the joint space; "
        "expected CLIPModel or CLIPVisionModelWithProjection of transformers, or a model of open_clip"
    )


def _by_processor(processor: CLIPImageProcessor, module: nn.Module, name: str) -> Preprocessing:
    settings = processor.to_dict()
    config = module.config
    side = int(getattr(config, "vision_config", config).image_size)
    probe = processor([Image.new("RGB", (side + 3, side + 5))], do_normalize=False, return_tensors="pt")
    size = tuple(probe["pixel_values"].shape[-2:])
    if size != (side, side):
        raise ValueError(f"{name}: {PROCESSOR} makes images of {size}, the model takes {side} x {side}")
    mean, std = (
        (settings["image_mean"], settings["image_std"]) if settings["do_normalize"] else ((0.0,) * 3, (1.0,) * 3)
    )

    def prepare(images: Sequence[Image.Image]) -> Tensor:
        return processor(list(images), do_normalize=False, return_tensors="pt")["pixel_values"]

    kept = {key: value for key, value in settings.items() if key.startswith(("do_", "image_", "size", "crop", "res"))}
    return Preprocessing(prepare, size, mean, std, json.dumps(kept, sort_keys=True, default=str))


def _by_open_clip(visual: Any) -> Preprocessing:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = PreprocessCfg(**visual.preprocess_cfg)
    *steps, _ = image_transform_v2(config, is_train=False).transforms  # the last one normalises

    def one(image: Image.Image) -> Any:
        pixels: Any = image
        for step in steps:
            pixels = step(pixels)
        return pixels

    size = (config.size, config.size) if isinstance(config.size, int) else tuple(config.size)
    return Preprocessing(
        lambda images: torch.stack([one(image) for image in images]),
        size,
        config.mean,
        config.std,
        json.dumps(asdict(config), sort_keys=True),
    )


def _architecture(module: nn.Module) -> str:
    """What changes the features and is not in the weights (activation, heads, ...)."""
    config = getattr(module, "config", None)
    if config is None:
        heads = [m.num_heads for m in module.modules() if hasattr(m, "num_heads")]
        return f"open_clip {module.visual} {heads}"
    c = getattr(config, "vision_config", config)
    return f"clip_vision {c.hidden_act} {c.num_attention_heads} {c.layer_norm_eps} {c.patch_size} {c.image_size}"


def _from_transformers(
    source: str, revision: str | None, subfolder: str, dtype: torch.dtype
) -> tuple[nn.Module, CLIPImageProcessor]:
    folder = Path(source).expanduser()
    if folder.is_dir():
        source = str(folder)
    elif looks_like_path(source):
        raise FileNotFoundError(f"no image encoder {source!r}: the folder {folder.absolute()} does not exist")
    where: Where = {"revision": revision, "subfolder": subfolder}
    try:
        if cached_file(source, "config.json", _raise_exceptions_for_missing_entries=False, **where) is None:
            raise FileNotFoundError(f"no image encoder {source!r}: there is no config.json in it")
        config = load_config(source, where)
        if config.model_type not in ("clip", "clip_vision_model"):
            raise ValueError(f'{source}: model_type "{config.model_type}" is no CLIP with an image tower')
        vision = getattr(config, "vision_config", config)
        if isinstance(config, CLIPConfig):
            vision.projection_dim = config.projection_dim  # the half's own is often a stale default
        kind: Any = CLIPVisionModelWithProjection
        module, _ = load_model(kind, source, where, config=vision, dtype=dtype, spare=_SPARE)
        if cached_file(source, PROCESSOR, _raise_exceptions_for_missing_entries=False, **where) is None:
            return module, image_processor(vision.image_size)
        with loading(source, f"{PROCESSOR} cannot be used"):
            return module, CLIPImageProcessor.from_pretrained(source, **where)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"no image encoder {source!r}: {reason}. Looked for a folder with config.json and *.safetensors, then for that "
            'id on the Hugging Face Hub; "world:original" and "world:fare" work without a network'
        ) from error
