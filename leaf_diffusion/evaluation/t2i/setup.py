"""Everything a run needs, loaded and checked before the first unit of work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.markup import escape
from torch import nn

from leaf_diffusion.command_line import refuse_idle
from leaf_diffusion.diffusion.families import native_side
from leaf_diffusion.encoders.base import Feature
from leaf_diffusion.evaluation import prompts as prompt_sets
from leaf_diffusion.evaluation.attack_sets import GivenAttack, read_attacks
from leaf_diffusion.evaluation.encoders import (
    EncoderName,
    Loaded,
    attacked_feature,
    load_alone,
    load_pipeline,
    load_towers,
)
from leaf_diffusion.evaluation.options import check_edits
from leaf_diffusion.evaluation.prompts import Prompt
from leaf_diffusion.evaluation.t2i.options import Options
from leaf_diffusion.evaluation.t2i.plan import Plan, make_plan
from leaf_diffusion.text.visible import isolated


@dataclass(frozen=True)
class Setup:
    options: Options
    prompts: list[Prompt]
    given_attacks: Sequence[GivenAttack]
    pipeline: Any
    encoders: dict[str, Loaded]
    neutral: dict[str, Loaded]
    feature: Feature
    plan: Plan

    @cached_property
    def given_by_text(self) -> dict[tuple[str, int, str], GivenAttack]:
        """(source, k, prompt) -> the row of a given attack set."""
        return {(row.source, row.k, row.prompt): row for row in self.given_attacks}

    def sources_that_are(self, fingerprint: str) -> list[str]:
        """The sources of attacks that are the encoder of this fingerprint, by their weights or by what an attack set says."""
        searched = {**self.encoders, **self.neutral}.items()
        found = [label for label, one in searched if any(base.fingerprint == fingerprint for base in one.bases)]
        said = [each.source for each in self.given_attacks if each.fingerprint == fingerprint]
        sources = dict.fromkeys(cell.source for cell in self.plan.cells if cell.source is not None)
        return [source for source in sources if source in {*found, *said}]

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return f"t2i-{Path(self.options.pipeline).name}"

    def said(self) -> list[str]:
        """What will be done."""
        options, plan = self.options, self.plan
        attacks, images = list(plan.attacks()), sum(1 for _ in plan.images())
        searched = attacks if not self.given_attacks else []
        cost = [
            options.attack.most_queries(unit.prompt.text, unit.k) or 0 for unit in searched if unit.k == max(options.k)
        ]
        queries = f", about {sum(cost):,} queries at most" if any(cost) else ""
        return [
            f"{len(plan.prompts)} prompts, encoders {_names(self.encoders)}; attacks ({options.attack.label}, "
            f"{options.constraint}) on {_names(plan.sources) or 'none'}: {len(attacks)}{queries}; images: {images}"
        ]

    def image_bytes(self) -> int:
        """What the run's images need at most: uncompressed, none of them drawn yet."""
        pipeline, options = self.pipeline, self.options
        side = native_side(pipeline)
        return sum(1 for _ in self.plan.images()) * 3 * (options.height or side) * (options.width or side)

    def modules(self) -> dict[str, nn.Module]:
        """What is loaded, by name: the pipeline's parts, and each encoder."""
        parts = {name: each for name, each in self.pipeline.components.items() if isinstance(each, nn.Module)}
        for label, one in {**self.encoders, **self.neutral}.items():
            numbers = [""] if len(one.bases) == 1 else [f" {i + 1}" for i in range(len(one.bases))]
            parts |= {f"encoder {label}{i}": base.module for i, base in zip(numbers, one.bases, strict=True)}
        return parts

    def source(self, label: str) -> Loaded:
        """The encoder that attacks are searched on."""
        return {**self.encoders, **self.neutral}[label]


def prepare(options: Options) -> Setup:
    """Load and check; ValueError or OSError says what is wrong and what to do."""
    given = read_attacks(options.attacked_prompts) if options.attacked_prompts else []
    prompts = load_prompts(options, given)
    names = [EncoderName.parse(text, world=options.world) for text in options.encoders]
    if len({name.label for name in names}) < len(names):
        raise ValueError(f"--encoders: two encoders share a label: {[n.label for n in names]}; write LABEL=SOURCE")
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
        given=sorted({(row.source, row.k) for row in given}),
    )
    feature = attacked_feature(options.feature, pipeline, encoders | neutral, world=options.world)
    return Setup(options, prompts, given, pipeline, encoders, neutral, feature, plan)


def load_prompts(options: Options, given: Sequence[GivenAttack]) -> list[Prompt]:
    """The prompts of the run; with attack sets every set must cover each of them."""
    if options.prompts is None:
        options.of_no_file()
    if options.prompts is not None or given:
        refuse_idle(options, "chooses among the world's own prompts", "two_objects", "three_objects", "counted")
    if given:
        search = "attack", "k", "constraint", "objective", "precision"
        refuse_idle(options, "is of a search, and --attacked-prompts are taken as they are", *search)
    if options.prompts is not None:
        prompts = options.read(options.prompts)
    elif given:
        prompts = [Prompt(text) for text in dict.fromkeys(row.prompt for row in given)]
    else:
        shares = {"two": options.two_objects, "three": options.three_objects, "counted": options.counted}
        prompts = prompt_sets.from_world(options.limit or 0, options.prompt_seed, **shares)
    prompts = prompts[: options.limit]
    if not given:
        check_edits(options.k, options.attack, [prompt.text for prompt in prompts])
    for source, k in sorted({(row.source, row.k) for row in given}):
        covered = {row.prompt for row in given if (row.source, row.k) == (source, k)}
        missing = [prompt.text for prompt in prompts if prompt.text not in covered]
        if missing:
            raise ValueError(
                f"{options.attacked_prompts}: the set (source {source!r}, k={k}) lacks {len(missing)} of "
                f"{len(prompts)} prompts, the first is {missing[0]!r}"
            )
    return prompts


def _names(labels: Iterable[str]) -> str:
    return escape(", ".join(map(isolated, labels)))
