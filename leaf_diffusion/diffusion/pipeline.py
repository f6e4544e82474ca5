"""What the Leaf pipelines share: exchanging and defending their text encoders, one to three of them; saving and loading."""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeAlias, TypeVar

from diffusers.loaders import FromSingleFileMixin
from torch import nn

from leaf_diffusion.diffusion.attacked import AttackedPipeline
from leaf_diffusion.diffusion.families import family_of
from leaf_diffusion.diffusion.loading import absent_components, checked_file, checked_folder, even_dtypes, found
from leaf_diffusion.diffusion.whole import check_parts, check_single_file
from leaf_diffusion.encoders.base import Defence, TextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.encoders.load import load_defence
from leaf_diffusion.encoders.lora import lora_layers, without_lora
from leaf_diffusion.encoders.sequence import SequenceTextEncoder
from leaf_diffusion.encoders.swap import exchanged
from leaf_diffusion.encoders.swap_sequence import exchanged_sequence, is_quantised


class Own(Enum):
    """Where no text encoder is given. (None is given to do without one.)"""

    OWN = "the pipeline's own"


OWN = Own.OWN
Source: TypeAlias = str | Path | nn.Module | TextEncoder
PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""The text encoders that a pipeline may have, in the order of arguments."""
P = ParamSpec("P")
R = TypeVar("R")


def defended(method: Callable[P, R]) -> Callable[P, R]:
    """A stock `encode_prompt` (or `__call__`) that is given the prompts after the pipeline's defence; its signature stays the
    stock one.

    The defence reads prompts alone: negative prompts are the user's own words. A class whose call gives them to
    `encode_prompt` as prompts has both wrapped: what the outer one calls is given what it gives. Lists are given as copies, as
    some classes write their template into them.
    """
    signature = inspect.signature(method)
    others = next((each.name for each in signature.parameters.values() if each.kind is each.VAR_KEYWORD), "")

    @functools.wraps(method)
    def with_defence(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments
        pipe, more = given["self"], given.pop(others, {})
        defence: Defence | None = pipe._defence
        for name in [each for each in given if "prompt" in each]:
            if isinstance(prompt := given[name], list):
                given[name] = prompt = list(prompt)
            if defence is not None and isinstance(prompt, str | list) and name in ("prompt", "prompt_2", "prompt_3"):
                given[name] = defence([prompt])[0] if isinstance(prompt, str) else defence(prompt)
        call: Callable[..., R] = method
        pipe._defence = None
        try:
            return call(**given, **more)
        finally:
            pipe._defence = defence

    return with_defence


class LeafPipeline(AttackedPipeline):
    """Stands before a stock pipeline class among the bases; `diffusion.families` says what that class is made of."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        text_encoder: Source | Own | None = OWN,
        text_encoder_2: Source | Own | None = OWN,
        text_encoder_3: Source | Own | None = OWN,
        adapter: str | Path | None = None,
        adapter_2: str | Path | None = None,
        adapter_3: str | Path | None = None,
        defence: str | Defence | None = None,
        components: Mapping[str, object] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a pipeline folder or Hub id and swap text encoders in, one of them or all; "world" is the embedded pipeline.

        A CLIP, its `adapter` (a LoRA, merged into the encoder) and `defence` are given as to `load_text_encoder`; a bare text
        model keeps the pipeline's own projection where it needs one. A T5 or a language model is a module, a
        `SequenceTextEncoder`, or a folder or Hub id that transformers loads in the class of the old one, and is the old one with
        other weights. The new encoder has the dtype and device of the old one, to which such a module is moved and cast, not
        copied; a quantised one is given to diffusers as it is. None: the pipeline does without that text encoder, as in diffusers. Everything
        else goes to diffusers: dtype (a name, too), variant, revision, local_files_only, components (by their names, or together
        as `components`).

        Raises FileNotFoundError where nothing is found; ValueError naming every misfit between an encoder and the
        pipeline, and for pickles, with the command that converts them.
        """
        sources = cls._sources((text_encoder, text_encoder_2, text_encoder_3), components, kwargs)
        source = checked_folder(pretrained_model_name_or_path, kwargs, cls)
        with found(source, kwargs):
            if any(isinstance(one, nn.Module | SequenceTextEncoder) for one in sources.values()):
                kwargs |= dict.fromkeys(sources.keys() & absent_components(source, kwargs))
            pipe = super().from_pretrained(source, **kwargs)
        check_parts(pipe, kwargs)
        even_dtypes(pipe, kwargs)
        pipe._exchange(sources, (adapter, adapter_2, adapter_3), defence)
        return pipe

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        *,
        text_encoder: Source | Own | None = OWN,
        text_encoder_2: Source | Own | None = OWN,
        text_encoder_3: Source | Own | None = OWN,
        adapter: str | Path | None = None,
        adapter_2: str | Path | None = None,
        adapter_3: str | Path | None = None,
        defence: str | Defence | None = None,
        components: Mapping[str, object] | None = None,
        **kwargs: Any,
    ) -> Self:
        """As `from_pretrained`, from one .safetensors file (or its address on the Hub). Without a network `config` is
        needed: the folder of a pipeline of that kind. A module for a tower that the file lacks is taken as it is.
        ValueError for classes that diffusers loads from no single file.
        """
        if not issubclass(cls, FromSingleFileMixin):
            stock = family_of(cls).stock
            raise ValueError(
                f"diffusers loads no {stock} from a single file: give its folder to {cls.__name__}.from_pretrained"
            )
        sources = cls._sources((text_encoder, text_encoder_2, text_encoder_3), components, kwargs)
        source, has = checked_file(pretrained_model_link_or_path, kwargs)
        has &= {each.part for each in family_of(cls).clips}
        for part in [part for part, one in sources.items() if isinstance(one, nn.Module) and part not in has]:
            kwargs[part] = sources.pop(part)
        with found(source, kwargs):
            pipe = super().from_single_file(source, **kwargs)
        check_parts(pipe, kwargs)
        if "://" not in source:
            check_single_file(pipe, Path(source), kwargs)
        even_dtypes(pipe, kwargs)
        pipe._exchange(sources, (adapter, adapter_2, adapter_3), defence)
        return pipe

    @classmethod
    def from_pipe(
        cls,
        pipeline: Any,
        *,
        text_encoder: Source | Own | None = OWN,
        text_encoder_2: Source | Own | None = OWN,
        text_encoder_3: Source | Own | None = OWN,
        adapter: str | Path | None = None,
        adapter_2: str | Path | None = None,
        adapter_3: str | Path | None = None,
        defence: str | Defence | None = None,
        components: Mapping[str, object] | None = None,
        **kwargs: Any,
    ) -> Self:
        """As diffusers' `from_pipe`, sharing components; the given pipeline keeps its own text encoders."""
        sources = cls._sources((text_encoder, text_encoder_2, text_encoder_3), components, kwargs)
        pipe = super().from_pipe(pipeline, **kwargs)
        if isinstance(pipeline, LeafPipeline):
            pipe._defence, pipe._projections = pipeline._defence, dict(pipeline._projections or {})
            pipe._names = dict(pipeline._names or {})
        pipe._exchange(sources, (adapter, adapter_2, adapter_3), defence)
        return pipe

    @classmethod
    def _sources(
        cls, named: tuple[object, ...], components: Mapping[str, object] | None, kwargs: dict[str, object]
    ) -> dict[str, Source]:
        """The text encoders to exchange, by their parts. What diffusers is to be given as it is (other components, None, a
        quantised T5) is added to `kwargs`."""
        parts = {each.part: each.kind for each in family_of(cls).text_encoders}
        given = {**(components or {}), **{part: one for part, one in zip(PARTS, named, strict=True) if one is not OWN}}
        sources = dict[str, Source]()
        for name, one in given.items():
            as_it_is = parts.get(name) != "clip" and is_quantised(one)
            if name in PARTS and isinstance(one, (str, Path, nn.Module, TextEncoder)) and not as_it_is:
                sources[name] = one
            elif name not in PARTS or name in parts:
                kwargs[name] = one
        return sources

    def _exchange(
        self,
        sources: Mapping[str, Source],
        adapters: tuple[str | Path | None, ...],
        defence: str | Defence | None,
    ) -> None:
        parts = {each.part: each for each in family_of(self).text_encoders}
        merged = dict(zip(PARTS, adapters, strict=False))
        new: list[tuple[str, nn.Module, str, Source | None]] = []
        for part in PARTS:
            source, adapter = sources.get(part), merged.get(part)
            if source is None and adapter is None:
                continue
            known = parts.get(part)
            current = getattr(self, part) if known is not None else None
            if known is not None and known.kind != "clip" and current is None and adapter is None:
                current = source.module if isinstance(source, TextEncoder) else source  # as in diffusers, as it is
            if known is None or not isinstance(current, nn.Module):
                raise ValueError(f"this pipeline has no {part} that could be exchanged")
            if known.kind == "clip":
                module, clip = exchanged(current, getattr(self, known.tokenizer), source, adapter)
                new.append((part, module, clip.name, clip))
            else:
                module = exchanged_sequence(part, current, source, adapter)
                named = source.name if isinstance(source, TextEncoder) else type(module).__name__
                new.append((part, module, str(source) if isinstance(source, (str, Path)) else named, source))
        for part, module, name, encoder in new:  # all fit, or nothing is changed
            self.register_modules(**{part: module})
            self._names = (self._names or {}) | {part: name}
            self._defence = getattr(encoder, "defence", None) or self._defence
            if (
                part in sources and parts[part].kind == "clip"
            ):  # an adapter alone leaves an earlier swap's projection in place
                own = encoder.projection if isinstance(encoder, HFTextEncoder) else None
                others = {name: one for name, one in (self._projections or {}).items() if name != part}
                self._projections = others if own is None else others | {part: copy.deepcopy(own)}
        if defence is not None:
            self._defence = load_defence(defence)

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
