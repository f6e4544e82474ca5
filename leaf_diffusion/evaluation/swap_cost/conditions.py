"""The conditions of `leaf-diffusion swap-cost`: what is asked for, and what the pipeline is given."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leaf_diffusion.diffusion.families import configuration, frozen_parts
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.evaluation.prompts import Prompt
from leaf_diffusion.evaluation.swap_cost.setup import NOTHING, Files, SwapCostOptions, has_peft
from leaf_diffusion.evaluation.swap_cost.training import CONCEPT, TOKEN, said
from leaf_diffusion.evaluation.t2i.judges import Judges
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.weights.fingerprints import fingerprint
from leaf_diffusion.world.captions import SINGLE, with_article
from leaf_diffusion.world.scenes import BACKGROUNDS, COLOURS, NOUNS, Scene, Thing

NEGATIVE = "blurry, low quality"
LENGTHS = (0.5, 1.5, 1.0, 0.75)
"""Tokens of the long prompts, as shares of the encoder's context: one of four is cut."""
NEUTRAL = (
    "as it was seen on an ordinary day by somebody who had come here for the first time and then went on with a note "
    "about it that says where when and how often this has been done before and what else there is to tell"
)


@dataclass(frozen=True)
class Asked:
    """A prompt as it is `given`; `caption` and `scene` say what the image should show, None where nobody can tell."""

    id: str
    given: str
    caption: str | None
    scene: Any = None
    negative: str | None = None


@dataclass(frozen=True)
class Condition:
    key: str
    title: str
    about: str
    prompts: Sequence[Asked]
    files: Files = NOTHING
    own: Mapping[str, Files] = field(default_factory=dict)
    """Files of single encoders, instead of those."""

    def files_of(self, label: str) -> Files:
        """What the encoder's pipeline is given."""
        return self.own.get(label, self.files)


def make_conditions(setup: Setup, options: SwapCostOptions, folder: Path) -> tuple[list[Condition], list[str]]:
    """The conditions that can be measured, and a sentence about each that cannot.

    The world's own token and LoRA are expected in `folder`, where `train_token` and `train_style` write them.
    """
    plain = [Asked(prompt.id, prompt.text, prompt.text, prompt.scene) for prompt in setup.prompts]
    first = next(iter(setup.encoders.values())).base
    conditions = [
        Condition("plain", "plain prompts", "The prompts as they are.", plain),
        Condition("negative", "negative prompt", *_negative(setup.prompts, options)),
        Condition("long", "long prompts", *_long(setup.prompts, first)),
    ]
    left_out = []
    if options.textual_inversion is not None:
        files = Files(options.textual_inversion, options.token)
        texts = list(dict.fromkeys(options.prompt_with_token))
        asked = [Asked(Prompt(text).id, text, None) for text in texts]
        conditions.append(Condition("token", "learnt token", f"{options.token} of {files.embedding}.", asked, files))
        conditions.append(_translated(conditions[-1], setup, folder))
    elif options.world:
        conditions.append(
            Condition(
                "token",
                "learnt token",
                f"{TOKEN} was learnt from images of one {' '.join(CONCEPT)}, a pair held out from the world's "
                "training, by textual inversion with the first encoder; the prompts are none of its training's.",
                token_prompts()[: options.limit],
                Files(folder / "token" / "learned_embeds.safetensors", TOKEN),
            )
        )
        conditions.append(_translated(conditions[-1], setup, folder))
    else:
        left_out.append("learnt token: left out, it needs --textual-inversion, --token and --prompt-with-token")
    if options.lora is not None:
        conditions.append(Condition("lora", "LoRA", f"{options.lora}.", plain, Files(lora=options.lora)))
    elif options.world and has_peft():
        about = "A LoRA of the UNet's attention, trained with the first encoder on scenes before a terracotta wall."
        files = Files(lora=folder / "style" / "pytorch_lora_weights.safetensors")
        # no caption: the CLIP that judges has never seen such a wall, and would mark the style down
        styled = [replace(asked, caption=None) for asked in plain]
        conditions.append(Condition("lora", "style LoRA", about, styled, files))
    else:
        left_out.append(f"LoRA: left out, it needs {'the package peft' if options.world else '--lora'}")
    return conditions, left_out


def _translated(learnt: Condition, setup: Setup, folder: Path) -> Condition:
    """The same prompts, each encoder but the first with the token as `leaf-diffusion translate-token` writes it."""
    own = {
        label: replace(learnt.files, embedding=folder / "token" / f"translated-{number}.safetensors")
        for number, label in enumerate(setup.encoders)
        if number
    }
    about = (
        "The same token, translated for each other encoder: vectors whose token states in other prompts are nearest to those "
        "that the first encoder gives the token."
    )
    return Condition("translated", "translated token", about, learnt.prompts, learnt.files, own)


def _negative(prompts: Sequence[Prompt], options: SwapCostOptions) -> tuple[str, list[Asked]]:
    rng, asked = random.Random(f"negative prompts {options.seed}"), []
    for prompt in prompts:
        text = options.negative_prompt
        if text is None and prompt.scene is not None:
            colours, nouns = ({getattr(thing, name) for thing in prompt.scene.things} for name in ("colour", "noun"))
            colour = rng.choice([each for each in COLOURS if each not in colours])
            text = with_article(f"a {colour} {rng.choice([each for each in NOUNS if each not in nouns])}")
        asked.append(Asked(prompt.id, prompt.text, prompt.text, prompt.scene, NEGATIVE if text is None else text))
    same = {each.negative for each in asked}
    what = f"“{same.pop()}”" if len(same) == 1 else "another colour and another thing than the prompt's"
    return f"The plain prompts; the negative prompt names {what}.", asked


def _long(prompts: Sequence[Prompt], encoder: TextEncoder) -> tuple[str, list[Asked]]:
    context = encoder.context_length
    lengths = [int(share * context) for share in LENGTHS]
    asked = [
        Asked(prompt.id, lengthened(prompt.text, lengths[i % len(lengths)], encoder), prompt.text, prompt.scene)
        for i, prompt in enumerate(prompts)
    ]
    named = ", ".join(map(str, lengths))
    about = f"Neutral words follow the prompt, until it has {named} tokens, in turn; {context} are read."
    return about, asked


def lengthened(text: str, tokens: int, encoder: TextEncoder) -> str:
    """`text` and neutral words after it, so that it has `tokens` tokens (a word may be more than one), ends included."""
    words, neutral = [text + ","], NEUTRAL.split()
    while len(encoder.rows([" ".join(words)])[0]) < tokens:
        words.append(neutral[(len(words) - 1) % len(neutral)])
    return " ".join(words)


def token_prompts() -> list[Asked]:
    """Every prompt with the token that its training does not use."""
    colour, noun = CONCEPT
    templates = [text for text in SINGLE["train"] if "{b}" in text] + list(SINGLE["test"])
    asked = {}
    for template in templates:
        for background in BACKGROUNDS if "{b}" in template else (next(iter(BACKGROUNDS)),):
            if "{c} {n}" in template:
                given, caption = (said(template, words, background) for words in (TOKEN, f"{colour} {noun}"))
                asked[given] = Asked(Prompt(given).id, given, caption, Scene((Thing(noun, colour),), background))
    return list(asked.values())


def identity(setup: Setup, options: SwapCostOptions, judges: Judges) -> dict[str, object]:
    """What decides the results: the encoders, the pipeline, the prompts, the files by their content."""
    conditions, _ = make_conditions(setup, options, Path())
    files = {"textual_inversion": options.textual_inversion, "lora": options.lora}
    return {
        **{name: path and hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
        "encoders": {label: each.fingerprint for label, each in setup.encoders.items()},
        "pipeline_weights": fingerprint(*frozen_parts(setup.pipeline)),
        "pipeline_configuration": fingerprint(json.dumps(configuration(setup.pipeline), sort_keys=True)),
        "judges": judges.fingerprints(),
        "steps": setup.options.steps,
        "guidance": setup.options.guidance,
        "feature_space": judges.space,
        "prompts": {each.key: [[asked.given, asked.negative] for asked in each.prompts] for each in conditions},
    }
