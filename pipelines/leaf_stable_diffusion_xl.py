"""Stable Diffusion XL with text encoders of your choice, each of the two swappable alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import nn

from leaf_diffusion.attacks.base import Attack, AttackResult
from leaf_diffusion.attacks.charmer import Charmer
from leaf_diffusion.encoders.base import Defence, Tower
from leaf_diffusion.encoders.huggingface import HFTextEncoder
from leaf_diffusion.encoders.load import load_defence
from leaf_diffusion.encoders.swap import exchanged
from leaf_diffusion.scoring.mean import MeanScorer
from leaf_diffusion.scoring.objectives import Drift, Objective
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import Constraint, constraint_from_name

Source = str | Path | nn.Module | Tower
TOWERS = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))


class LeafStableDiffusionXLPipeline(StableDiffusionXLPipeline):
    """`StableDiffusionXLPipeline` that takes robust text encoders by name and can attack its own prompts.

    Pictures are those of the stock pipeline with the same components; saved, it *is* a stock pipeline. A defence is not
    part of a saved pipeline: name it again when loading.
    """

    # class attributes, because an __init__ of its own would break from_pipe and save_pretrained
    _defence: Defence | None = None
    _projection: nn.Linear | None = None
    _names: dict[str, str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        text_encoder: Source | None = None,
        text_encoder_2: Source | None = None,
        defence: str | Defence | None = None,
        **kwargs: Any,
    ) -> LeafStableDiffusionXLPipeline:
        """Load a pipeline folder or Hub id and swap `text_encoder` (CLIP-L) and `text_encoder_2` (CLIP-G) in, or one of
        them. Sources and `defence` as in `load_text_encoder`; everything else goes to diffusers.

        A bare text model in the place of the second keeps the pipeline's own projection. Raises ValueError naming every
        misfit between an encoder and the pipeline, and for `use_safetensors=False`.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError(
                "use_safetensors=False would open pickles, which can run code: only safetensors are loaded"
            )
        loaded = super().from_pretrained(str(pretrained_model_name_or_path), **kwargs)
        pipe = cast(LeafStableDiffusionXLPipeline, loaded)
        pipe._exchange((text_encoder, text_encoder_2), defence)
        return pipe

    @classmethod
    def from_pipe(
        cls,
        pipeline: Any,
        *,
        text_encoder: Source | None = None,
        text_encoder_2: Source | None = None,
        defence: str | Defence | None = None,
        **kwargs: Any,
    ) -> LeafStableDiffusionXLPipeline:
        """As diffusers' `from_pipe`, sharing components; the given pipeline keeps its own text encoders."""
        pipe = cast(LeafStableDiffusionXLPipeline, super().from_pipe(pipeline, **kwargs))
        if isinstance(pipeline, LeafStableDiffusionXLPipeline):
            pipe._defence, pipe._projection = pipeline._defence, pipeline._projection
            pipe._names = dict(pipeline._names or {})
        pipe._exchange((text_encoder, text_encoder_2), defence)
        return pipe

    def _exchange(self, sources: tuple[Source | None, Source | None], defence: str | Defence | None) -> None:
        found = []
        for (part, reader), source in zip(TOWERS, sources, strict=True):
            if source is None:
                continue
            current = getattr(self, part)
            if current is None:
                raise ValueError(f"this pipeline has no {part} that could be exchanged")
            found.append((part, *exchanged(current, getattr(self, reader), source)))
        for part, module, encoder in found:  # both fit, or nothing is changed
            self.register_modules(**{part: module})
            self._names = (self._names or {}) | {part: encoder.name}
            self._defence = encoder.defence or self._defence
            if part == "text_encoder":
                own = encoder.projection if isinstance(encoder, HFTextEncoder) else None
                self._projection = copy.deepcopy(own)
        if defence is not None:
            self._defence = load_defence(defence)

    @property
    def encoders(self) -> list[HFTextEncoder]:
        """The pipeline's text encoders as they stand (the refiner has the second alone), with their defence."""
        base = str(self.config.get("_name_or_path") or "pipeline")
        found = []
        for part, reader in TOWERS:
            if (module := getattr(self, part)) is not None:
                projection = self._projection if part == "text_encoder" else None
                if projection is not None:
                    projection = projection.to(module.device, module.dtype)
                name = (self._names or {}).get(part, f"{base}/{part}")
                found.append(
                    HFTextEncoder(
                        module, getattr(self, reader), name=name, defence=self._defence, projection=projection
                    )
                )
        return found

    def encode_prompt(self, prompt: Any, prompt_2: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the stock method, after the defence. It sees prompts only: negative prompts are the user's own words."""
        if self._defence is not None:
            prompt, prompt_2 = (self._defended(each) for each in (prompt, prompt_2))
        return super().encode_prompt(prompt, prompt_2, *args, **kwargs)

    def _defended(self, prompt: Any) -> Any:
        if prompt is None or self._defence is None:
            return prompt
        return self._defence([prompt])[0] if isinstance(prompt, str) else self._defence(prompt)

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
        """Worst prompts within `k` edits, found on both text encoders together (default attack: `Charmer()`).

        The score is the mean of both towers' squared L2 drifts, each relative to its own clean embedding, so that the
        larger tower does not drown the other: projected features where there is a projection, else pooled ones.
        `objective` takes the place of the drift on each tower.
        """
        scorers = []
        for encoder in self.encoders:
            own = objective or Drift("l2", feature="projected" if encoder.has_projection else "pooled")
            scorers.append((Scorer(encoder, own), 1.0))
        rule = constraint_from_name(constraint) if isinstance(constraint, str) else constraint
        found = (attack or Charmer())(
            list(prompts), MeanScorer(scorers), k=k, constraint=rule, seed=seed, on_step=on_step
        )
        return list(found)

    def to_json_string(self) -> str:
        """The configuration under the stock class name, so that stock classes load what this one saves."""
        config = json.loads(super().to_json_string())
        config["_class_name"] = StableDiffusionXLPipeline.__name__
        return json.dumps(config, indent=2, sort_keys=True) + "\n"
