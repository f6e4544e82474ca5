"""Captions of scenes: many natural templates, some held out; fillers and typos at a web-like rate.

Real CLIP has read the web, misspellings included, so a world whose captions were spotless would make a straw man
of the original encoder: `web_caption` adds unrelated words from the whole dictionary and natural typos.
"""

import random
import re
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from leaf_diffusion.text import NoNewWords, distance
from leaf_diffusion.text.edits import random_edits
from leaf_diffusion.text.words import load_words
from leaf_diffusion.world.scenes import COLOURS, NOUNS, Scene, Split, held_out, sample_scene

SINGLE = {
    "train": (
        "a {c} {n}", "a photo of a {c} {n}", "a picture of a {c} {n}", "a drawing of a {c} {n}", "an image of one {c} {n}",
        "a {c} {n} on a {b} background", "a photo of a {c} {n} on a {b} background", "there is a {c} {n} in front of a {b} wall",
        "the {n} is {c}", "this {n} is {c} and everything around it is {b}", "a {n} that is {c}", "one {c} {n} on {b}",
        "a {n}", "a photo of a {n}", "a picture of a {n} on a {b} background",
    ),
    "test": ("a painting of a {c} {n}", "here we see a {c} {n} on a {b} background", "a photo of the {c} {n}", "this is a {c} {n}"),
}  # fmt: skip
LEFT = {
    "train": (
        "a {c} {n} to the left of a {d} {m}", "a {d} {m} to the right of a {c} {n}", "a {c} {n} left of a {d} {m} on a {b} background",
        "a {c} {n} to the left of a {d} {m} on a {b} background", "on the left a {c} {n}, on the right a {d} {m}",
    ),
    "test": ("a photo of a {c} {n} to the left of a {d} {m}", "a {d} {m} right of a {c} {n} on a {b} background"),
}  # fmt: skip
ABOVE = {
    "train": (
        "a {c} {n} above a {d} {m}", "a {d} {m} below a {c} {n}", "a {c} {n} above a {d} {m} on a {b} background",
        "a photo of a {c} {n} above a {d} {m}", "at the top a {c} {n}, at the bottom a {d} {m}",
    ),
    "test": ("a picture of a {c} {n} above a {d} {m}", "a {d} {m} below a {c} {n} on a {b} background"),
}  # fmt: skip
BESIDE = {
    "train": ("a {c} {n} and a {d} {m}", "a {c} {n} next to a {d} {m} on a {b} background"),
    "test": ("a {c} {n} beside a {d} {m}",),
}
ROW = {
    "train": (
        "a {c} {n}, a {d} {m} and a {e} {o} in a row", "from left to right a {c} {n}, a {d} {m} and a {e} {o}",
        "a {c} {n} to the left of a {d} {m} to the left of a {e} {o}", "a row of a {c} {n}, a {d} {m} and a {e} {o} on a {b} background",
    ),
    "test": (
        "a {c} {n}, a {d} {m} and a {e} {o} from left to right",
        "a photo of a {c} {n}, a {d} {m} and a {e} {o} in a row on a {b} background",
    ),
}  # fmt: skip
COLUMN = {
    "train": (
        "from top to bottom a {c} {n}, a {d} {m} and a {e} {o}", "a {c} {n} above a {d} {m} above a {e} {o}",
        "a {c} {n}, a {d} {m} and a {e} {o} in a column", "a column of a {c} {n}, a {d} {m} and a {e} {o} on a {b} background",
    ),
    "test": (
        "a {c} {n}, a {d} {m} and a {e} {o} from top to bottom",
        "a photo of a {c} {n}, a {d} {m} and a {e} {o} in a column on a {b} background",
    ),
}  # fmt: skip
AMONG = {
    "train": ("a {c} {n}, a {d} {m} and a {e} {o}", "a {c} {n} and a {d} {m} and a {e} {o} on a {b} background"),
    "test": ("a photo of a {c} {n}, a {d} {m} and a {e} {o}",),
}
COUNT = {
    "train": (
        "{k} {c} {ns}", "a photo of {k} {c} {ns}", "there are {k} {c} {ns} on a {b} background", "a drawing of {k} {c} {ns}",
        "{k} {c} {ns} on a {b} background",
    ),
    "test": ("a picture of {k} {c} {ns}", "here we see {k} {c} {ns} on a {b} background"),
}  # fmt: skip
NUMBERS = {2: "two", 3: "three"}
PLURALS = {"butterfly": "butterflies", "mouse": "mice", "snowman": "snowmen"}
SUFFIXES = (", {w}", ", {w} and {v}", " by {w} {v}", " for {w}", " ({w} {v})", ", {w} {v}", " | {w}")
PREFIXES = ("{w}: ", "my {w}, ", "{w} {v} - ")


@dataclass(frozen=True)
class WorldPrompt:
    """A prompt and the scene it asks for (colours that the text leaves open are None)."""

    id: str
    text: str
    scene: Scene


def plural(noun: str) -> str:
    """More than one of a noun."""
    return PLURALS.get(noun) or noun + ("es" if noun.endswith(("s", "sh", "ch", "x")) else "s")


def describe(scene: Scene, rng: random.Random, split: Split = "train") -> tuple[str, Scene]:
    """A caption of `scene` by a template of `split`, and the scene with only what the caption says.

    The draws from `rng` do not depend on the scene's nouns and colours: the same state describes a scene and its `twin` by
    one template.
    """
    things = scene.things
    n, told, shuffle = len(things), rng.random(), rng.random()
    if n == 1:
        (first,) = things
        template = rng.choice(SINGLE[split])
        noun = f"{rng.choice(('small', 'tiny', 'little'))} {{n}}" if scene.small else "{n}"
        text = template.replace("{n}", noun).format(n=first.noun, c=first.colour, b=scene.background)
        asked = scene if "{c}" in template else replace(scene, things=(replace(first, colour=None),))
    elif scene.counted:
        first = things[0]
        text = rng.choice(COUNT[split]).format(k=NUMBERS[n], c=first.colour, ns=plural(first.noun), b=scene.background)
        asked = replace(scene, relation="beside")
    else:
        beside = scene.relation == "beside" or (split == "train" and told < 0.15)
        placed = {2: (LEFT, ABOVE, BESIDE), 3: (ROW, COLUMN, AMONG)}[n]
        template = rng.choice(placed[2 if beside else 0 if scene.relation == "left" else 1][split])
        if beside and shuffle < 0.5:
            things = things[::-1]
        names = {key: thing.noun for key, thing in zip("nmo", things, strict=False)}
        colours = {key: thing.colour for key, thing in zip("cde", things, strict=False)}
        text = template.format(**names, **colours, b=scene.background)
        asked = replace(scene, things=things, relation="beside") if beside else scene
    return with_article(text), asked


def with_article(text: str) -> str:
    """ "a" as "an" before a vowel."""
    return re.sub(r"\b(a) (?=[aeiou])", "an ", text)


@cache
def _fillers() -> list[str]:
    said = {*NOUNS, *COLOURS}
    return sorted(w for w in load_words() if 3 <= len(w) <= 10 and w.isascii() and w.isalpha() and w not in said)


def web_caption(text: str, rng: random.Random, *, filler: float = 0.25, typo: float = 0.05) -> str:
    """`text` as the web would have it: with unrelated words around it, and now and then one random character edit."""
    if rng.random() < filler:
        words = {"w": rng.choice(_fillers()), "v": rng.choice(_fillers())}
        text = (
            text + rng.choice(SUFFIXES).format(**words)
            if rng.random() < 0.7
            else rng.choice(PREFIXES).format(**words) + text
        )
    if rng.random() < typo:
        text = random_edits(text, 1, np.random.default_rng(rng.getrandbits(32))).text(0)
    return text


def world_prompts(
    n: int, seed: int = 0, *, two: float = 0.0, three: float = 0.0, counted: float = 0.0
) -> list[WorldPrompt]:
    """Evaluation prompts, distinct, never a training caption.

    Held-out templates; half of the prompts show held-out colour x noun pairs. `two` and `three` are the shares of prompts with
    so many things, `counted` the share of counts among these.
    """
    rng = random.Random(f"world prompts {seed}")
    prompts: dict[str, WorldPrompt] = {}
    for _ in range(20 * n + 1000):
        if len(prompts) == n:
            break
        split: Split = "test" if rng.random() < 0.5 else "train"
        scene = sample_scene(rng, two=two, three=three, counted=counted, split=split, small=0.0)
        text, asked = describe(scene, rng, "test")
        prompts.setdefault(text, WorldPrompt(f"world-{seed}-{len(prompts):04d}", text, asked))
    if len(prompts) < n:
        raise ValueError(f"the world has only about {len(prompts)} distinct prompts of this kind; {n} were asked for")
    return list(prompts.values())


def full_prompts(n: int, seed: int = 0, *, two: float = 0.5) -> list[WorldPrompt]:
    """Prompts that name all there is in their scene (colours, nouns, relation, background), by held-out templates.

    Distinct scenes have distinct prompts then, so among the n images each prompt describes one alone.
    """
    rng = random.Random(f"full prompts {seed}")
    prompts: dict[str, WorldPrompt] = {}
    for _ in range(40 * n + 4000):
        if len(prompts) == n:
            break
        scene = sample_scene(rng, two=two, split="test" if rng.random() < 0.5 else "train", small=0.0)
        text, asked = describe(scene, rng, "test")
        if text.endswith(f" on a {scene.background} background"):
            prompts.setdefault(text, WorldPrompt(f"full-{seed}-{len(prompts):04d}", text, asked))
    if len(prompts) < n:
        raise ValueError(f"the world has only about {len(prompts)} distinct prompts of this kind; {n} were asked for")
    return list(prompts.values())


def training_captions(n: int = 20_000) -> list[str]:
    """Captions by the training templates, of every kind of scene, spelt right and without fillers; always the same."""
    rng = random.Random("training captions")
    scenes = (sample_scene(rng, two=0.4, three=0.2, counted=0.2, split="train", small=0.1) for _ in range(n))
    return [describe(scene, rng)[0] for scene in scenes]


def zero_shot_prompts() -> list[tuple[str, str, str]]:
    """(text, noun, colour) of the zero-shot task: one caption a colour x noun class."""
    return [(with_article(f"a photo of a {c} {n}"), n, c) for n in NOUNS for c in COLOURS]


def is_held_out(scene: Scene) -> bool:
    """Whether any thing of the scene is a colour x noun pair kept out of training."""
    return any(thing.colour is not None and held_out(thing.noun, thing.colour) for thing in scene.things)


def other_readings(caption: str, attacked: str, k: int = 1) -> list[str]:
    """The captions with another noun that `attacked` is as near to: within `k` edits that make no new word.

    An encoder, to which capitals are the same letters, gives one embedding to the misspelling of them all.
    """
    words, rule, attacked = caption.split(), NoNewWords(), attacked.lower()
    readings = []
    for place, word in enumerate(words):
        others = [noun for noun in NOUNS if noun != word] if word in NOUNS else []
        for text in (" ".join([*words[:place], noun, *words[place + 1 :]]) for noun in others):
            if distance(text, attacked) <= k and rule.holds(text, attacked):
                readings.append(text)
    return readings
