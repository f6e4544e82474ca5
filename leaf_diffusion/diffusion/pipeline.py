"""What the Leaf pipelines share: exchanging, defending and attacking the CLIP text encoders, one or two of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias, cast

from torch import nn

from leaf_diffusion.attacks.base import Attack, AttackResult
from leaf_diffusion.attacks.charmer import Charmer
from leaf_diffusion.diffusion.loading import checked_file, checked_folder, even_dtypes, found
from leaf_diffusion.encoders.base import Defence, Feature, TextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder, computes_on
from leaf_diffusion.encoders.load import load_defence
from leaf_diffusion.encoders.swap import exchanged
from leaf_diffusion.scoring.mean import MeanScorer
from leaf_diffusion.scoring.objectives import Drift, Objective
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import Constraint, constraint_from_name

Source: TypeAlias = str | Path | nn.Module | TextEncoder
PARTS = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))


class LeafPipeline:
    """Stands before a stock pipeline class among the bases.

    `_stock`: that class; `_towers`: how many CLIPs it has; `_feature`: what of them it is given pooled, None: projected where
    the projection is known, else pooled.
    """

    # class attributes, because an __init__ of its own would break from_pipe and save_pretrained
    _stock: ClassVar[type]
    _towers: ClassVar[int] = 2
    _feature: ClassVar[Feature | None] = None
    _defence: Defence | None = None
    _projections: dict[str, nn.Linear] | None = None
    _names: dict[str, str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        text_encoder: Source | None = None,
        text_encoder_2: Source | None = None,
        adapter: str | Path | None = None,
        adapter_2: str | Path | None = None,
        defence: str | Defence | None = None,
        components: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a pipeline folder or Hub id and swap `text_encoder` (CLIP-L) and `text_encoder_2` (CLIP-G) in, or one of
        them; "world" is the embedded pipeline.

        Sources, `adapter` (a LoRA, merged into the encoder) and `defence` as in `load_text_encoder`; the new encoder has
        the dtype and device of the old one, and a bare text model keeps the pipeline's own projection where it needs one.
        Everything else goes to diffusers: dtype (a name, too), variant, revision, local_files_only, components (by their
        names, or together as `components`).

        Raises FileNotFoundError where nothing is found; ValueError naming every misfit between an encoder and the
        pipeline, and for pickles, with the command that converts them.
        """
        kwargs |= components or {}
        source = checked_folder(pretrained_model_name_or_path, kwargs, cls.__name__, cls._stock)
        with found(source, kwargs):
            pipe = cast(Any, super()).from_pretrained(source, **kwargs)
        even_dtypes(pipe, kwargs)
        pipe._exchange((text_encoder, text_encoder_2), (adapter, adapter_2), defence)
        return cast(Self, pipe)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        *,
        text_encoder: Source | None = None,
        text_encoder_2: Source | None = None,
        adapter: str | Path | None = None,
        adapter_2: str | Path | None = None,
        defence: str | Defence | None = None,
        components: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """As `from_pretrained`, from one .safetensors file (or its address on the Hub). Without a network `config` is
        needed: the folder of a pipeline of that kind. A module for a tower that the file lacks is taken as it is.
        """
        kwargs |= components or {}
        source, has = checked_file(pretrained_model_link_or_path, kwargs)
        given = {"text_encoder": text_encoder, "text_encoder_2": text_encoder_2}
        lacking = {part: one for part, one in given.items() if isinstance(one, nn.Module) and part not in has}
        with found(source, kwargs):
            pipe = cast(Any, super()).from_single_file(source, **kwargs, **lacking)
        even_dtypes(pipe, kwargs)
        first, second = (None if part in lacking else one for part, one in given.items())
        pipe._exchange((first, second), (adapter, adapter_2), defence)
        return cast(Self, pipe)

    @classmethod
    def from_pipe(
        cls,
        pipeline: Any,
        *,
        text_encoder: Source | None = None,
        text_encoder_2: Source | None = None,
        adapter: str | Path | None = None,
        adapter_2: str | Path | None = None,
        defence: str | Defence | None = None,
        components: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """As diffusers' `from_pipe`, sharing components; the given pipeline keeps its own text encoders."""
        pipe = cast(Any, super()).from_pipe(pipeline, **kwargs, **components or {})
        if isinstance(pipeline, LeafPipeline):
            pipe._defence, pipe._projections = pipeline._defence, dict(pipeline._projections or {})
            pipe._names = dict(pipeline._names or {})
        pipe._exchange((text_encoder, text_encoder_2), (adapter, adapter_2), defence)
        return cast(Self, pipe)

    def _exchange(
        self,
        sources: tuple[Source | None, Source | None],
        adapters: tuple[str | Path | None, str | Path | None],
        defence: str | Defence | None,
    ) -> None:
        new: list[tuple[str, Any, TextEncoder, bool]] = []
        for index, ((part, reader), source, adapter) in enumerate(zip(PARTS, sources, adapters, strict=True)):
            if source is None and adapter is None:
                continue
            current = getattr(self, part) if index < self._towers else None
            if current is None:
                raise ValueError(f"this pipeline has no {part} that could be exchanged")
            new.append((part, *exchanged(current, getattr(self, reader), source, adapter), source is not None))
        for part, module, encoder, whole in new:  # all fit, or nothing is changed
            cast(Any, self).register_modules(**{part: module})
            self._names = (self._names or {}) | {part: encoder.name}
            self._defence = encoder.defence or self._defence
            if whole:  # an adapter alone leaves the projection of an earlier swap in place
                own = encoder.projection if isinstance(encoder, HFTextEncoder) else None
                others = {name: one for name, one in (self._projections or {}).items() if name != part}
                self._projections = others if own is None else others | {part: copy.deepcopy(own)}
        if defence is not None:
            self._defence = load_defence(defence)

    @property
    def encoders(self) -> list[HFTextEncoder]:
        """The CLIP text encoders as they stand (a refiner has the second alone), with their defence and, where it is
        known, their projection."""
        base = str(cast(Any, self).config.get("_name_or_path") or "pipeline")
        made = []
        for part, reader in PARTS[: self._towers]:
            if (module := getattr(self, part)) is not None:
                projection = (self._projections or {}).get(part)
                if projection is not None:
                    projection = projection.to(computes_on(module), module.dtype)
                name = (self._names or {}).get(part, base if self._towers == 1 else f"{base}/{part}")
                reading = getattr(self, reader)
                made.append(HFTextEncoder(module, reading, name=name, defence=self._defence, projection=projection))
        return made

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
        """Worst prompts within `k` edits, found on this pipeline's own CLIP text encoders (default attack: `Charmer()`).

        The default objective is the squared L2 drift of projected features where the projection is known, and of pooled
        ones otherwise: the CLIPTextModel inside a Stable Diffusion has none (of pooled ones always in FLUX, which is given
        those). With two towers the score is the mean of
        both drifts, each relative to its own clean embedding, so that the larger does not drown the other; `objective`
        takes the drift's place on each. `Drift("l2", feature=Hidden())` attacks the token states.
        """
        scorers = []
        for encoder in self.encoders:
            default: Feature = "projected" if encoder.has_projection else "pooled"
            own = objective or Drift("l2", feature=self._feature or default)
            scorers.append((Scorer(encoder, own), 1.0))
        scorer = scorers[0][0] if self._towers == 1 else MeanScorer(scorers)
        rule = constraint_from_name(constraint) if isinstance(constraint, str) else constraint
        return list((attack or Charmer())(list(prompts), scorer, k=k, constraint=rule, seed=seed, on_step=on_step))

    def to_json_string(self) -> str:
        """The configuration under the stock class name, so that stock classes load what this one saves."""
        config = json.loads(cast(Any, super()).to_json_string())
        config["_class_name"] = self._stock.__name__
        return json.dumps(config, indent=2, sort_keys=True) + "\n"
