"""Stable Diffusion with a text encoder of your choice: swap it in, attack it, save it as a stock pipeline."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import nn

from leaf_diffusion.attacks.base import Attack, AttackResult
from leaf_diffusion.attacks.charmer import Charmer
from leaf_diffusion.encoders.base import Defence, Tower
from leaf_diffusion.encoders.huggingface import HFTextEncoder
from leaf_diffusion.encoders.load import load_defence
from leaf_diffusion.encoders.swap import exchanged
from leaf_diffusion.scoring.objectives import Drift, Objective
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import Constraint, constraint_from_name


class LeafStableDiffusionPipeline(StableDiffusionPipeline):
    """`StableDiffusionPipeline` that takes a robust text encoder by name and can attack its own prompts.

    Pictures are those of the stock pipeline with the same components; saved, it *is* a stock pipeline
    (`StableDiffusionPipeline`, `DiffusionPipeline` and `AutoPipelineForText2Image` load it). A defence is not part of a
    saved pipeline, and neither is the encoder's text projection: name them again when loading.
    """

    # class attributes, because an __init__ of its own would break from_pipe and save_pretrained
    _defence: Defence | None = None
    _projection: nn.Linear | None = None
    _encoder_name: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        text_encoder: str | Path | nn.Module | Tower | None = None,
        defence: str | Defence | None = None,
        adapter: str | Path | None = None,
        **kwargs: Any,
    ) -> LeafStableDiffusionPipeline:
        """Load a pipeline folder or Hub id ("world": the embedded one) and swap `text_encoder` in.

        `text_encoder`, `adapter` and `defence` as in `load_text_encoder`; everything else goes to diffusers.
        Raises ValueError naming every misfit between the encoder and the pipeline, and for `use_safetensors=False`.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError(
                "use_safetensors=False would open pickles, which can run code: only safetensors are loaded"
            )
        if str(pretrained_model_name_or_path) == "world":
            from leaf_diffusion.world import pipeline_path

            pretrained_model_name_or_path = pipeline_path()
        pipe = cast(LeafStableDiffusionPipeline, super().from_pretrained(str(pretrained_model_name_or_path), **kwargs))
        pipe._exchange(text_encoder, defence, adapter)
        return pipe

    @classmethod
    def from_pipe(
        cls,
        pipeline: Any,
        *,
        text_encoder: str | Path | nn.Module | Tower | None = None,
        defence: str | Defence | None = None,
        adapter: str | Path | None = None,
        **kwargs: Any,
    ) -> LeafStableDiffusionPipeline:
        """As diffusers' `from_pipe`, sharing components; the given pipeline keeps its own text encoder."""
        pipe = cast(LeafStableDiffusionPipeline, super().from_pipe(pipeline, **kwargs))
        if isinstance(pipeline, LeafStableDiffusionPipeline):
            pipe._defence, pipe._projection = pipeline._defence, pipeline._projection
            pipe._encoder_name = pipeline._encoder_name
        pipe._exchange(text_encoder, defence, adapter)
        return pipe

    def _exchange(
        self, source: str | Path | nn.Module | Tower | None, defence: str | Defence | None, adapter: str | Path | None
    ) -> None:
        if source is not None or adapter is not None:
            module, encoder = exchanged(self.text_encoder, self.tokenizer, source, adapter)
            self.register_modules(text_encoder=module)
            projection = encoder.projection if isinstance(encoder, HFTextEncoder) else None
            if source is not None:  # an adapter alone leaves the projection of an earlier swap in place
                self._projection = copy.deepcopy(projection)
            self._encoder_name, self._defence = encoder.name, encoder.defence or self._defence
        if defence is not None:
            self._defence = load_defence(defence)

    @property
    def encoder(self) -> HFTextEncoder:
        """The pipeline's text encoder as it stands, with its defence and, where it is known, its projection."""
        module = self.text_encoder
        projection = self._projection
        if projection is not None:
            projection = projection.to(module.device, module.dtype)
        name = self._encoder_name or str(self.config.get("_name_or_path") or "pipeline")
        return HFTextEncoder(module, self.tokenizer, name=name, defence=self._defence, projection=projection)

    def encode_prompt(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        """As the stock method, after the defence. It sees prompts only: negative prompts are the user's own words."""
        if self._defence is not None and prompt is not None:
            prompt = self._defence([prompt])[0] if isinstance(prompt, str) else self._defence(prompt)
        return super().encode_prompt(prompt, *args, **kwargs)

    def attack(
        self,
        prompts: Sequence[str],
        *,
        attack: Attack | None = None,
        k: int = 1,
        constraint: Constraint | str | None = "no-new-words",
        objective: Objective | None = None,
        seed: int = 0,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[AttackResult]:
        """Worst prompts within `k` edits, found on this pipeline's own text encoder (default attack: `Charmer()`).

        The default objective is the squared L2 drift of projected features where the encoder was swapped in with a
        projection, and of pooled features otherwise: the CLIPTextModel inside a pipeline has no projection.
        `Drift("l2", feature=Hidden())` attacks the token states that the UNet is conditioned on.
        """
        encoder = self.encoder
        if objective is None:
            objective = Drift("l2", feature="projected" if encoder.has_projection else "pooled")
        rule = constraint_from_name(constraint) if isinstance(constraint, str) else constraint
        found = (attack or Charmer())(
            list(prompts), Scorer(encoder, objective), k=k, constraint=rule, seed=seed, on_step=on_step
        )
        return list(found)

    def to_json_string(self) -> str:
        """The configuration under the stock class name, so that stock classes load what this one saves."""
        config = json.loads(super().to_json_string())
        config["_class_name"] = StableDiffusionPipeline.__name__
        return json.dumps(config, indent=2, sort_keys=True) + "\n"
