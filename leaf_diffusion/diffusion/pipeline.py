"""What the Leaf pipelines share: exchanging, defending and attacking their CLIP text encoders, one or two of them."""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeAlias, TypeVar

from diffusers import DiffusionPipeline
from torch import nn

from leaf_diffusion.attacks.base import Attack, AttackResult
from leaf_diffusion.attacks.exact_or_beam import ExactOrBeam
from leaf_diffusion.diffusion.families import family_of
from leaf_diffusion.diffusion.loading import checked_file, checked_folder, even_dtypes, found
from leaf_diffusion.diffusion.whole import check_parts, check_single_file
from leaf_diffusion.encoders.base import Defence, TextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder, computes_on
from leaf_diffusion.encoders.load import load_defence
from leaf_diffusion.encoders.lora import lora_layers, without_lora
from leaf_diffusion.encoders.swap import exchanged
from leaf_diffusion.scoring.mean import MeanScorer
from leaf_diffusion.scoring.objectives import Drift, Objective
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import Constraint, constraint_from_name


class Own(Enum):
    """Where no text encoder is given. (None is given to do without one.)"""

    OWN = "the pipeline's own"


OWN = Own.OWN
Source: TypeAlias = str | Path | nn.Module | TextEncoder
P = ParamSpec("P")
R = TypeVar("R")


def defended(encode_prompt: Callable[P, R]) -> Callable[P, R]:
    """A stock `encode_prompt` that is given the prompts after the pipeline's defence; its signature stays the stock one.

    The defence reads prompts alone: negative prompts are the user's own words.
    """
    signature = inspect.signature(encode_prompt)

    @functools.wraps(encode_prompt)
    def with_defence(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments
        defence: Defence | None = given["self"]._defence
        for name in ("prompt", "prompt_2", "prompt_3"):
            if defence is not None and (prompt := given.get(name)) is not None:
                given[name] = defence([prompt])[0] if isinstance(prompt, str) else defence(prompt)
        call: Callable[..., R] = encode_prompt
        return call(**given)

    return with_defence


class LeafPipeline(DiffusionPipeline):
    """Stands before a stock pipeline class among the bases; `diffusion.families` says what that class is made of."""

    # class attributes, because an __init__ of its own would break from_pipe and save_pretrained
    _defence: Defence | None = None
    _projections: dict[str, nn.Linear] | None = None
    _names: dict[str, str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        text_encoder: Source | Own | None = OWN,
        text_encoder_2: Source | Own | None = OWN,
        adapter: str | Path | None = None,
        adapter_2: str | Path | None = None,
        defence: str | Defence | None = None,
        components: Mapping[str, object] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a pipeline folder or Hub id and swap `text_encoder` (CLIP-L) and `text_encoder_2` (CLIP-G) in, or one of
        them; "world" is the embedded pipeline.

        Sources, `adapter` (a LoRA, merged into the encoder) and `defence` as in `load_text_encoder`; the new encoder has
        the dtype and device of the old one, and a bare text model keeps the pipeline's own projection where it needs one.
        None: the pipeline does without that text encoder, as in diffusers, and a T5 is given as there. Everything else goes
        to diffusers: dtype (a name, too), variant, revision, local_files_only, components (by their names, or together as
        `components`).

        Raises FileNotFoundError where nothing is found; ValueError naming every misfit between an encoder and the
        pipeline, and for pickles, with the command that converts them.
        """
        sources = cls._sources(text_encoder, text_encoder_2, components, kwargs)
        source = checked_folder(pretrained_model_name_or_path, kwargs, cls)
        with found(source, kwargs):
            pipe = super().from_pretrained(source, **kwargs)
        check_parts(pipe, kwargs)
        even_dtypes(pipe, kwargs)
        pipe._exchange(sources, (adapter, adapter_2), defence)
        return pipe

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        *,
        text_encoder: Source | Own | None = OWN,
        text_encoder_2: Source | Own | None = OWN,
        adapter: str | Path | None = None,
        adapter_2: str | Path | None = None,
        defence: str | Defence | None = None,
        components: Mapping[str, object] | None = None,
        **kwargs: Any,
    ) -> Self:
        """As `from_pretrained`, from one .safetensors file (or its address on the Hub). Without a network `config` is
        needed: the folder of a pipeline of that kind. A module for a tower that the file lacks is taken as it is.
        """
        sources = cls._sources(text_encoder, text_encoder_2, components, kwargs)
        source, has = checked_file(pretrained_model_link_or_path, kwargs)
        for part in [part for part, one in sources.items() if isinstance(one, nn.Module) and part not in has]:
            kwargs[part] = sources.pop(part)
        with found(source, kwargs):
            pipe = super().from_single_file(source, **kwargs)
        check_parts(pipe, kwargs)
        if "://" not in source:
            check_single_file(pipe, Path(source), kwargs)
        even_dtypes(pipe, kwargs)
        pipe._exchange(sources, (adapter, adapter_2), defence)
        return pipe

    @classmethod
    def from_pipe(
        cls,
        pipeline: Any,
        *,
        text_encoder: Source | Own | None = OWN,
        text_encoder_2: Source | Own | None = OWN,
        adapter: str | Path | None = None,
        adapter_2: str | Path | None = None,
        defence: str | Defence | None = None,
        components: Mapping[str, object] | None = None,
        **kwargs: Any,
    ) -> Self:
        """As diffusers' `from_pipe`, sharing components; the given pipeline keeps its own text encoders."""
        sources = cls._sources(text_encoder, text_encoder_2, components, kwargs)
        pipe = super().from_pipe(pipeline, **kwargs)
        if isinstance(pipeline, LeafPipeline):
            pipe._defence, pipe._projections = pipeline._defence, dict(pipeline._projections or {})
            pipe._names = dict(pipeline._names or {})
        pipe._exchange(sources, (adapter, adapter_2), defence)
        return pipe

    @classmethod
    def _sources(
        cls, first: object, second: object, components: Mapping[str, object] | None, kwargs: dict[str, object]
    ) -> dict[str, Source]:
        """The CLIPs to exchange, by their parts. What diffusers is to be given as it is (other components, None, a T5) is
        added to `kwargs`."""
        named = {"text_encoder": first, "text_encoder_2": second}
        given = {**(components or {}), **{part: one for part, one in named.items() if one is not OWN}}
        family = family_of(cls)
        kept, sources = {each.part for each in family.kept}, dict[str, Source]()
        for name, one in given.items():
            if name in named and name not in kept and isinstance(one, (str, Path, nn.Module, TextEncoder)):
                sources[name] = one
            elif name not in named or name in {each.part for each in family.text_encoders}:
                kwargs[name] = one
        return sources

    def _exchange(
        self,
        sources: Mapping[str, Source],
        adapters: tuple[str | Path | None, str | Path | None],
        defence: str | Defence | None,
    ) -> None:
        clips = {each.part: each.tokenizer for each in family_of(self).clips}
        new: list[tuple[str, Any, TextEncoder]] = []
        for part, adapter in zip(("text_encoder", "text_encoder_2"), adapters, strict=True):
            source = sources.get(part)
            if source is None and adapter is None:
                continue
            current = getattr(self, part) if part in clips else None
            if current is None:
                raise ValueError(f"this pipeline has no {part} that could be exchanged")
            new.append((part, *exchanged(current, getattr(self, clips[part]), source, adapter)))
        for part, module, encoder in new:  # all fit, or nothing is changed
            self.register_modules(**{part: module})
            self._names = (self._names or {}) | {part: encoder.name}
            self._defence = encoder.defence or self._defence
            if part in sources:  # an adapter alone leaves the projection of an earlier swap in place
                own = encoder.projection if isinstance(encoder, HFTextEncoder) else None
                others = {name: one for name, one in (self._projections or {}).items() if name != part}
                self._projections = others if own is None else others | {part: copy.deepcopy(own)}
        if defence is not None:
            self._defence = load_defence(defence)

    @property
    def encoders(self) -> list[HFTextEncoder]:
        """The CLIP text encoders as they stand (a refiner has the second alone), with their defence and, where it is
        known, their projection."""
        base = str(self.config.get("_name_or_path") or "pipeline")
        made, clips = [], family_of(self).clips
        for each in clips:
            if (module := getattr(self, each.part)) is not None:
                projection = (self._projections or {}).get(each.part)
                if projection is not None:
                    projection = projection.to(computes_on(module), module.dtype)
                name = (self._names or {}).get(each.part, base if len(clips) == 1 else f"{base}/{each.part}")
                tokenizer = getattr(self, each.tokenizer)
                made.append(HFTextEncoder(module, tokenizer, name=name, defence=self._defence, projection=projection))
        return made

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
        """Worst prompts within `k` edits, found on this pipeline's own CLIP text encoders (default attack: `ExactOrBeam()`).

        The default objective is the squared L2 drift of what the pipeline's class has of each encoder: pooled features of
        CLIPTextModels (Stable Diffusion, SDXL's first, FLUX), projected ones of those with a projection (SDXL's second, both
        of SD3). So the same weights get the same attack, whatever projection an exchanged encoder brings along;
        `Drift("l2", feature="projected")` attacks that, `Drift("l2", feature=Hidden())` the token states. With two towers
        the score is the mean of both drifts, each relative to its own clean embedding, so that the larger does not drown
        the other; `objective` takes the drift's place on each.

        ValueError where the pipeline has no CLIP.
        """
        family = family_of(self)
        features = [each.attacked for each in family.clips if getattr(self, each.part) is not None]
        if not features:
            raise ValueError(f"this {type(self).__name__} has no CLIP text encoder that could be attacked")
        scorers = [
            (Scorer(encoder, objective or Drift("l2", feature=feature)), 1.0)
            for encoder, feature in zip(self.encoders, features, strict=True)
        ]
        scorer = scorers[0][0] if len(family.clips) == 1 else MeanScorer(scorers)
        rule = constraint_from_name(constraint) if isinstance(constraint, str) else constraint
        return list((attack or ExactOrBeam())(list(prompts), scorer, k=k, constraint=rule, seed=seed, on_step=on_step))

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; a LoRA that a part carries is merged into what is saved, so that it draws the same images.

        (diffusers would write the LoRA's layers in the place of the weights, which nothing could load.)
        """
        parts = {name: part for name, part in self.components.items() if isinstance(part, nn.Module)}
        plain = {name: without_lora(part) for name, part in parts.items() if lora_layers(part)}
        for name, part in plain.items():
            setattr(self, name, part)
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            for name in plain:
                setattr(self, name, parts[name])

    def to_json_string(self) -> str:
        """The configuration under the stock class name, so that stock classes load what this one saves."""
        config = json.loads(super().to_json_string())
        config["_class_name"] = family_of(self).stock
        return json.dumps(config, indent=2, sort_keys=True) + "\n"
