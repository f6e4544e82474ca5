"""What the pipelines with two CLIP text encoders share: exchanging either, defending both, attacking both together."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias, cast

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

Source: TypeAlias = str | Path | nn.Module | Tower
TOWERS = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))


class TwoTowers:
    """Stands before a stock pipeline class among the bases; `_stock` is that class."""

    # class attributes, because an __init__ of its own would break from_pipe and save_pretrained
    _stock: ClassVar[type]
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
    ) -> Self:
        """Load a pipeline folder or Hub id and swap `text_encoder` (CLIP-L) and `text_encoder_2` (CLIP-G) in, or one of
        them. Sources and `defence` as in `load_text_encoder`; everything else goes to diffusers.

        A bare text model keeps the pipeline's own projection where the pipeline needs one. Raises ValueError naming
        every misfit between an encoder and the pipeline, and for `use_safetensors=False`.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError(
                "use_safetensors=False would open pickles, which can run code: only safetensors are loaded"
            )
        pipe = cast(Any, super()).from_pretrained(str(pretrained_model_name_or_path), **kwargs)
        pipe._exchange((text_encoder, text_encoder_2), defence)
        return cast(Self, pipe)

    @classmethod
    def from_pipe(
        cls,
        pipeline: Any,
        *,
        text_encoder: Source | None = None,
        text_encoder_2: Source | None = None,
        defence: str | Defence | None = None,
        **kwargs: Any,
    ) -> Self:
        """As diffusers' `from_pipe`, sharing components; the given pipeline keeps its own text encoders."""
        pipe = cast(Any, super()).from_pipe(pipeline, **kwargs)
        if isinstance(pipeline, TwoTowers):
            pipe._defence, pipe._projection = pipeline._defence, pipeline._projection
            pipe._names = dict(pipeline._names or {})
        pipe._exchange((text_encoder, text_encoder_2), defence)
        return cast(Self, pipe)

    def _exchange(self, sources: tuple[Source | None, Source | None], defence: str | Defence | None) -> None:
        found: list[tuple[str, Any, Tower]] = []
        for (part, reader), source in zip(TOWERS, sources, strict=True):
            if source is None:
                continue
            current = getattr(self, part)
            if current is None:
                raise ValueError(f"this pipeline has no {part} that could be exchanged")
            found.append((part, *exchanged(current, getattr(self, reader), source)))
        for part, module, encoder in found:  # both fit, or nothing is changed
            cast(Any, self).register_modules(**{part: module})
            self._names = (self._names or {}) | {part: encoder.name}
            self._defence = encoder.defence or self._defence
            if part == "text_encoder":
                own = encoder.projection if isinstance(encoder, HFTextEncoder) else None
                self._projection = copy.deepcopy(own)
        if defence is not None:
            self._defence = load_defence(defence)

    @property
    def encoders(self) -> list[HFTextEncoder]:
        """The CLIP text encoders as they stand (a refiner has the second alone), with their defence."""
        base = str(cast(Any, self).config.get("_name_or_path") or "pipeline")
        found = []
        for part, reader in TOWERS:
            if (module := getattr(self, part)) is not None:
                projection = self._projection if part == "text_encoder" else None
                if projection is not None:
                    projection = projection.to(module.device, module.dtype)
                name = (self._names or {}).get(part, f"{base}/{part}")
                reading = getattr(self, reader)
                found.append(HFTextEncoder(module, reading, name=name, defence=self._defence, projection=projection))
        return found

    def _defended(self, prompt: Any) -> Any:
        """A prompt, or a list of them, after the defence. Negative prompts are the user's own words and stay."""
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
        """Worst prompts within `k` edits, found on both CLIP text encoders together (default attack: `Charmer()`).

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
        config = json.loads(cast(Any, super()).to_json_string())
        config["_class_name"] = self._stock.__name__
        return json.dumps(config, indent=2, sort_keys=True) + "\n"
