"""Everything a run needs, loaded and checked before the first unit of work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leaf_diffusion.attacks import attack_from_name
from leaf_diffusion.diffusion.families import native_side
from leaf_diffusion.encoders.base import Feature
from leaf_diffusion.evaluation import prompts as prompt_sets
from leaf_diffusion.evaluation.encoders import (
    EncoderName,
    Loaded,
    attacked_feature,
    load_alone,
    load_pipeline,
    load_towers,
)
from leaf_diffusion.evaluation.folders import check_writable
from leaf_diffusion.evaluation.prompts import Prompt
from leaf_diffusion.evaluation.t2i.options import Options
from leaf_diffusion.evaluation.t2i.plan import Plan, make_plan


@dataclass(frozen=True)
class Setup:
    options: Options
    prompts: list[Prompt]
    given_attacks: list[dict[str, Any]]
    pipeline: Any
    encoders: dict[str, Loaded]
    neutral: dict[str, Loaded]
    feature: Feature
    plan: Plan

    def source(self, label: str) -> Loaded:
        """The encoder that attacks are searched on."""
        return {**self.encoders, **self.neutral}[label]


def prepare(options: Options) -> Setup:
    """Load and check; ValueError or OSError says what is wrong and what to do."""
    attack_from_name(options.attack)
    given = prompt_sets.read_attacks(options.attacked_prompts) if options.attacked_prompts else []
    prompts = load_prompts(options, given)
    names = [EncoderName.parse(text, world=options.world) for text in options.encoders]
    if len({name.label for name in names}) < len(names):
        raise ValueError(f"--encoders: two encoders share a label: {[n.label for n in names]}; write LABEL=SOURCE")
    if options.output is not None:
        check_writable(options.output)
    pipeline = load_pipeline(options)
    encoders = load_towers(names, pipeline, options)
    neutral: dict[str, Loaded] = {}
    if options.neutral_source != "none" and "transfer" in options.protocols and not given:
        name = EncoderName.parse(str(options.neutral_source), world=options.world)
        if name.label in encoders:
            raise ValueError(
                f"--neutral-source {name.label} is one of the encoders under evaluation: it is not neutral"
            )
        neutral = {name.label: load_alone(name, options)}
    undefended = [name.label for name in names if name.defence is None]
    plan = make_plan(
        prompts,
        list(encoders),
        protocols=options.protocols,
        transfer_sources=[*(undefended or list(encoders))[:2], *neutral],
        ks=options.k,
        seeds=options.seeds,
        given=sorted({(row["source"], row["k"]) for row in given}),
    )
    feature = attacked_feature(options.feature, pipeline, encoders | neutral, world=options.world)
    return Setup(options, prompts, given, pipeline, encoders, neutral, feature, plan)


def load_prompts(options: Options, given: Sequence[dict[str, Any]]) -> list[Prompt]:
    """The prompts of the run; with attack sets every set must cover each of them."""
    if options.prompts is not None:
        column, split = options.prompt_column, options.prompt_split
        prompts = prompt_sets.from_file(options.prompts, column, split, every=options.every_caption)
    elif given:
        prompts = [Prompt(text) for text in dict.fromkeys(row["prompt"] for row in given)]
    else:
        shares = {"two": options.two_objects, "three": options.three_objects, "counted": options.counted}
        prompts = prompt_sets.from_world(options.limit or 0, options.prompt_seed, **shares)
    prompts = prompts[: options.limit]
    for source, k in sorted({(row["source"], row["k"]) for row in given}):
        covered = {row["prompt"] for row in given if (row["source"], row["k"]) == (source, k)}
        missing = [prompt.text for prompt in prompts if prompt.text not in covered]
        if missing:
            raise ValueError(
                f"{options.attacked_prompts}: the set (source {source!r}, k={k}) lacks {len(missing)} of "
                f"{len(prompts)} prompts, the first is {missing[0]!r}"
            )
    return prompts


def image_bytes(setup: Setup) -> int:
    """What the run's images need at most: uncompressed, none of them drawn yet."""
    pipeline, options = setup.pipeline, setup.options
    side = native_side(pipeline)
    return sum(1 for _ in setup.plan.images()) * 3 * (options.height or side) * (options.width or side)
