"""What the denoiser of any diffusers pipeline is given of a prompt, by the pipeline's own `encode_prompt`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import is_bs4_available, is_ftfy_available
from jaxtyping import Float
from torch import Tensor, nn

from leaf_diffusion.encoders.base import Defence
from leaf_diffusion.weights.fingerprints import fingerprint

PLAIN = {
    "num_images_per_prompt": 1, "num_videos_per_prompt": 1, "num_waveforms_per_prompt": 1,
    "do_classifier_free_guidance": False,
}  # fmt: skip
"""What `encode_prompt` is told besides the prompt: one image of it, and nothing of what it is not."""


@dataclass(frozen=True)
class PromptEmbedding:
    """What a denoiser is given of one prompt: sequences of token states, without places that it may not attend to, and single
    vectors, each in the order in which `encode_prompt` returns them."""

    states: tuple[Float[Tensor, "_t _width"], ...]
    pooled: tuple[Float[Tensor, " _d"], ...]


class PipelineEncoder:
    """The text encoders of a pipeline as one: the definition that every faster way is tested against.

    Nothing is known of the pipeline but that it has `encode_prompt`. A prompt encoded by itself is the definition: where a
    pipeline fills a batch up to its longest prompt, what a prompt is may depend on its neighbours. So many as `batch_size` are
    encoded together once the first of them came out as by themselves; where they did not, a warning says so, and each is encoded
    alone. `arguments`: what else `encode_prompt` shall be given. ValueError where it is missing, or asks for what is not known here.
    """

    def __init__(self, pipeline: Any, *, batch_size: int = 16, **arguments: Any) -> None:
        self.pipeline, self.name, self.batch_size = pipeline, type(pipeline).__name__, batch_size
        self._tried = False
        if not callable(getattr(pipeline, "encode_prompt", None)):
            raise ValueError(f"{self.name} has no encode_prompt, so what its denoiser is given is not known")
        self._arguments = _filled(pipeline, arguments)

    def __call__(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """What each prompt becomes, float32. ValueError for numbers that are not finite."""
        if isinstance(prompts, str):
            raise TypeError("expected a list of prompts, got one string: put it in a list")
        found = list[PromptEmbedding]()
        with torch.inference_mode():
            while len(found) < len(prompts):
                some = prompts[len(found) : len(found) + self.batch_size]
                found += self._encode(some) if len(some) == 1 or self._tried else self._try(some)
        return found

    def _encode(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        device = getattr(self.pipeline, "_execution_device", None)
        told = {"device": device} if "device" in self._arguments and self._arguments["device"] is None else {}
        # a list for one as well: some pipelines write into what they are given
        returned = self.pipeline.encode_prompt(list(prompts), **{**self._arguments, **told})
        found = [read_embedding(each) for each in split(returned, len(prompts))]
        for prompt, one in zip(prompts, found, strict=True):
            if not one.states and not one.pooled:
                raise ValueError(f"{self.name}: encode_prompt gives nothing of {prompt!r} that is known here")
            if not all(torch.isfinite(each).all() for each in (*one.states, *one.pooled)):
                raise ValueError(f"{self.name}: what it gives of {prompt!r} holds NaN or infinity")
        return found

    def _try(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """Each prompt by itself; from now on several together if these come out as that."""
        alone = [each for prompt in prompts for each in self._encode([prompt])]
        try:
            same = all(map(near, self._encode(prompts), alone))
        except (ValueError, RuntimeError):  # lists are not taken, or what comes back is not one a prompt
            same = False
        if same:
            self._tried = len(set(map(len, prompts))) > 1  # of different lengths: else they tell little
        else:
            warnings.warn(
                f"{self.name}: prompts encoded together differ from those by themselves: one at a time, slowly",
                stacklevel=3,
            )
            self.batch_size = 1
        return alone

    # -- what attacks ask of the text ----------------------------------------------------------------------------

    @property
    def tokenizers(self) -> dict[str, Any]:
        """The pipeline's tokenizers by the names of their components, in their order."""
        parts: Mapping[str, Any] = self.pipeline.components
        return {name: part for name, part in parts.items() if "tokenizer" in name and callable(part)}

    def preprocess(self, texts: Sequence[str]) -> list[str]:
        """The texts after the pipeline's defence; what else it does to them is its own."""
        return list(texts) if self.defence is None else self.defence(list(texts))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token rows of the first tokenizer, neither cut nor filled up nor in a template."""
        tokenizer = next(iter(self.tokenizers.values()), None)
        return [[] if tokenizer is None else list(tokenizer(text)["input_ids"]) for text in texts]

    def is_truncated(self, texts: Sequence[str]) -> list[bool]:
        """Whether the first tokenizer makes more tokens of each text than it, or `encode_prompt`, says that it takes."""
        tokenizer = next(iter(self.tokenizers.values()), None)
        told = [getattr(tokenizer, "model_max_length", None)]
        if len(self.tokenizers) == 1:
            told.append(self._arguments.get("max_sequence_length"))
        limits = [limit for limit in told if isinstance(limit, int)]
        return [bool(limits) and len(row) > min(limits) for row in self.tokenize(texts)]

    @property
    def defence(self) -> Defence | None:
        """What the prompts go through before the pipeline's own `encode_prompt`, by its Leaf class or `harden`."""
        return getattr(self.pipeline, "_defence", None)

    # -- identity ------------------------------------------------------------------------------------------------

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The pipeline's text encoders by the names of their components."""
        parts: Mapping[str, Any] = self.pipeline.components
        return {k: part for k, part in parts.items() if "text_encoder" in k and isinstance(part, nn.Module)}

    @property
    def fingerprint(self) -> str:
        """sha256 hex over the pipeline's class, its text encoders, tokenizers and defence."""
        backends = (getattr(each, "backend_tokenizer", None) for each in self.tokenizers.values())
        read = "\n".join("" if each is None else each.to_str() for each in backends)
        defence = self.defence.fingerprint if self.defence else ""
        return fingerprint(*self.modules.values(), f"{self.name}\n{read}\n{defence}")


def _filled(pipeline: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `encode_prompt` besides the prompt: those that are given, else what the pipeline's own call gives it
    (an instruction before the prompt, a longest prompt), else its defaults."""
    name = type(pipeline).__name__
    parameters = inspect.signature(pipeline.encode_prompt).parameters
    called = inspect.signature(type(pipeline).__call__).parameters
    if "prompt" not in parameters:
        raise ValueError(f"{name}.encode_prompt takes no prompt; it takes: {', '.join(parameters)}")
    if unknown := [each for each in given if each not in parameters]:
        raise ValueError(f"{name}.encode_prompt has no {', '.join(unknown)}; it has: {', '.join(parameters)}")
    found = {each: value for each, value in {**PLAIN, "device": None}.items() if each in parameters} | dict(given)
    for each in parameters.values():
        if each.name in found or each.name == "prompt" or each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL):
            continue
        if each.name in called and called[each.name].default is not each.empty:
            found[each.name] = called[each.name].default
        elif each.default is each.empty and each.name.startswith(("prompt_", "negative_prompt")):
            found[each.name] = None  # the same prompt, or none
        elif each.default is each.empty:
            raise ValueError(
                f"{name}.encode_prompt asks for {each.name}, which is not known here: PipelineEncoder(pipeline, {each.name}=...)"
            )
    if found.get("clean_caption") and not cleans_captions():
        found["clean_caption"] = False  # as the pipeline would have it, with a warning for every prompt
    return found


def cleans_captions() -> bool:
    """Whether the packages are there that pipelines clean captions with; without them they do not."""
    return bool(is_bs4_available() and is_ftfy_available())


def near(some: PromptEmbedding, other: PromptEmbedding) -> bool:
    """Whether two embeddings are the same but for rounding."""
    pairs = [(some.states, other.states), (some.pooled, other.pooled)]
    if any([each.shape for each in a] != [each.shape for each in b] for a, b in pairs):
        return False
    return all(bool((x - y).norm() <= 1e-4 * y.norm()) for a, b in pairs for x, y in zip(a, b, strict=True))


def split(returned: Any, n: int) -> list[Any]:
    """What was returned of n prompts as what is returned of each; what has no dimension of n goes to all."""
    if isinstance(returned, Tensor):
        for dim in range(min(2, returned.ndim)):
            if returned.shape[dim] == n and (dim == 0 or returned.ndim == 4):
                return list(returned.split(1, dim))
    elif isinstance(returned, Mapping):
        return split(tuple(returned.values()), n)
    elif (
        isinstance(returned, list)
        and len(returned) == n
        and all(isinstance(x, Tensor) and x.ndim == 2 for x in returned)
    ):
        return [[each] for each in returned]
    elif isinstance(returned, tuple | list) and returned:
        return [type(returned)(each) for each in zip(*(split(each, n) for each in returned), strict=True)]
    return [returned] * n


def read_embedding(returned: Any) -> PromptEmbedding:
    """What `encode_prompt` returned of one prompt, told apart by shapes.

    Token states are floating-point [1, t, width], or a list of one [t, width]; a mask [1, t] of 0 and 1 behind them says which
    of their places may be attended to; a vector is floating-point [1, width]. States of several layers, [1, layers, t, width]
    or [layers, 1, t, width], are so many sequences after one another. Anything else (places of tokens) says nothing of the prompt.
    """
    states, pooled, waiting = list[Tensor](), list[Tensor](), list[int]()
    for each in _tensors(returned):
        if _is_mask(each, states, waiting):
            kept = waiting.pop()
            states[kept] = states[kept][each[0].bool().to(states[kept].device)]
        elif not each.is_floating_point():
            continue
        elif each.ndim == 3 and len(each) == 1:
            waiting = [len(states)]
            states.append(each[0].float())
        elif each.ndim == 4 and 1 in each.shape[:2]:
            waiting = []
            states.append(each.flatten(0, 2).float())
        elif each.ndim == 2 and len(each) == 1:
            pooled.append(each[0].float())
    return PromptEmbedding(tuple(states), tuple(pooled))


def _is_mask(each: Tensor, states: Sequence[Tensor], waiting: Sequence[int]) -> bool:
    if not waiting or each.ndim != 2 or tuple(each.shape) != (1, len(states[waiting[-1]])):
        return False
    return each.dtype == torch.bool or bool(((each == 0) | (each == 1)).all())


def _tensors(returned: Any) -> Iterable[Tensor]:
    """The tensors, in their order; those of a list of one prompt as a batch of one."""
    if isinstance(returned, Tensor):
        yield returned
    elif isinstance(returned, Mapping):
        for each in returned.values():
            yield from _tensors(each)
    elif isinstance(returned, tuple):
        for each in returned:
            yield from _tensors(each)
    elif isinstance(returned, list):
        for each in returned:
            yield from ([each[None]] if isinstance(each, Tensor) and each.ndim == 2 else _tensors(each))
