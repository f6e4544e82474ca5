"""The options that several commands share; a command's own options inherit them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import torch

from leaf_diffusion.attacks import Attack, ExactOrBeam, attack_from_text
from leaf_diffusion.command_line import ByName, refuse_idle
from leaf_diffusion.evaluation.prompts import ClusterName, Prompt, from_file
from leaf_diffusion.evaluation.results import Setting
from leaf_diffusion.text.constraints import Constraint, constraint_from_name

ConstraintName = Literal["no-new-words", "published", "none"]
AnyAttack = Annotated[Attack, ByName(attack_from_text)]
"""An attack as an option: `--attack leaf --attack.rho 20`, or `--attack leaf:rho=20`."""

STRONGEST = ExactOrBeam()


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every experiment can be told about its run."""

    help_group: ClassVar[str] = "the run"

    encoders: tuple[str, ...] = ("original", "leaf", "typo-augmented")
    """Labels of the world's encoders, sources ("world:leaf", a folder, a Hub id) or LABEL=SOURCE; behind it a defence:
    "+speller" corrects spelling, "+canonical" (or "+canonical:FILE") is what `leaf-diffusion certify` tries. The first is the
    baseline of the differences; the main comparison is the second against it."""
    output: Path | None = None
    """The run's folder. Default: runs/ and a name that follows from what the run is."""
    device: str = "auto"
    """auto (a GPU where there is one, else the CPU), cpu, cuda, cuda:1, mps."""
    share: bool = False
    """Work on the run's folder together with other processes that are given the same command; `accelerate launch` and
    `torchrun` need no flag."""
    strict: bool = False
    """One prompt, image and score at a time, deterministic kernels, no TF32, one CPU thread: the same bits again on the
    same kind of machine, whatever was resumed or shared, and slower."""
    dry_run: bool = False
    """Load, check, run one prompt through everything, and say what the run would do and how long it would take."""
    config: Path | None = None
    """A YAML file with any of these options (underscores in names); the command line goes over it."""

    @property
    def shared(self) -> bool:
        """Whether other processes may work on the folder, too."""
        return self.share or int(os.environ.get("WORLD_SIZE", "1")) > 1

    def at_once(self, size: int) -> int:
        """How many of what would be computed `size` at a time."""
        return 1 if self.strict else size

    def main_setting(self, labels: Sequence[str]) -> Setting | None:
        """What the run is for, of the label that is set against the first of `labels`; default: nothing is declared."""
        return None

    def resolved(self) -> Self:
        """The defaults that depend on the machine or on other options, filled in."""
        return dataclasses.replace(self, device=resolve_device(self.device))


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Where prompts come from."""

    help_group: ClassVar[str] = "prompts"
    renamed: ClassVar[Mapping[str, str]] = {"--prompt-column": "--column", "--prompt-split": "--split"}

    prompts: Path | None = None
    """Text (one prompt a line), JSONL, CSV, TSV (PartiPrompts), Parquet, COCO captions, the Karpathy split, Flickr30k's
    token file, a pattern of such files, or dataset:NAME of Hugging Face datasets. Default: the world's own prompts."""
    column: str | None = None
    """Where the prompts stand in records. Default: the first of prompt, caption, text, raw, sentence."""
    split: str | None = None
    """Only prompts of this split, where the file tells one ("test" of a Karpathy split)."""
    every_caption: bool = False
    """Whether every caption of an image is a prompt; otherwise its first."""
    limit: int | None = None
    """Number of prompts. Default: all."""

    def read(self, path: Path, cluster: ClusterName = "image") -> list[Prompt]:
        """The prompts of a file, as the options choose them."""
        return from_file(path, self.column, self.split, every=self.every_caption, cluster=cluster)[: self.limit]


@dataclass(frozen=True, kw_only=True)
class MeasuredPromptOptions(PromptOptions):
    """Prompts that figures with intervals are about, of a file or of the world."""

    clusters: ClusterName = "image"
    """Which prompts of a file count together in the intervals: those of one image, or of one label (the columns label_text,
    label, class, category). The world's are those of one noun."""

    def read(self, path: Path, cluster: ClusterName | None = None) -> list[Prompt]:
        """The prompts of a file, as the options choose them."""
        return super().read(path, cluster or self.clusters)

    def of_no_file(self) -> None:
        """ValueError for an option that says how a file is read."""
        refuse_idle(self, "belongs to --prompts FILE", "column", "split", "every_caption", "clusters")


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What searches, and what it may not write."""

    help_group: ClassVar[str] = "the attack"
    renamed: ClassVar[Mapping[str, str]] = {"--n-positions": "--attack.n-positions"}

    attack: AnyAttack = STRONGEST
    """exact-or-beam: all single edits of a text of 80 characters at most (--attack.exact-up-to), a beam for longer ones and
    further edits; charmer (the paper's), leaf, exhaustive (k=1; k=2 as far as --attack.max-queries goes), genetic,
    random-typos, tokens (whole tokens substituted), words (replaced by near ones; with --constraint none); or everyday
    noise: keyboard, ocr, swapped-letters, missing-spaces, punctuation, homoglyphs, invisible, reordered, at random or, with
    worst- before the name, searched.
    Its parameters: --attack.n-positions 5, or --attack charmer:n_positions=5."""
    constraint: ConstraintName = "no-new-words"
    """no-new-words: no edit makes an English word that was not there; published: the rule of the paper's code."""


@dataclass(frozen=True, kw_only=True)
class AttackOptions(SearchOptions):
    """The attack and what it maximises."""

    help_group: ClassVar[str] = "the attack"
    renamed: ClassVar[Mapping[str, str]] = {"--rho": "--attack.rho", "--attack-seed": "--seed"}

    k: tuple[int, ...] = (1, 2)
    """Numbers of edits: of characters, or what the attack counts (slips, tokens, words)."""
    objective: Literal["l2", "cosine"] = "l2"
    """What the attacker maximises: the drift of the prompt's embedding, squared L2 or 1 - cosine."""
    feature: Literal["auto", "pooled", "projected", "states", "readout"] = "auto"
    """What of the embedding drifts: pooled, the final state at end-of-text; projected, that in the joint space with images,
    which TextFARE and the paper's attacks look at; states, all 77 token states, padding included, which a Stable
    Diffusion's denoiser is given; readout, what attention reads of these, wherever they stand.
    auto: projected in the world and where every text encoder of the pipeline's class (or the one encoder) has a
    projection, else pooled, so that it does not depend on which encoders are compared."""
    precision: Literal["fp32", "screen"] = "fp32"
    """screen: candidates are scored in bfloat16 or int8 first, the best again in full; faster, and nearly always the same."""
    seed: int = 0
    """Seed of what is random in the command: attacks that draw (leaf, random-typos, genetic, noise)."""

    def __post_init__(self) -> None:
        check_edits(self.k, self.attack)
        self.attack.check_constraint(self.constraint)

    def rule(self) -> Constraint | None:
        """The constraint."""
        return constraint_from_name(self.constraint)


def check_edits(ks: Sequence[int], attack: Attack | None = None, prompts: Sequence[str] = ()) -> None:
    """ValueError unless `ks` are different numbers of edits, each at least 1, that the attack and the prompts can take."""
    if not ks:
        raise ValueError("--k needs at least one number of edits")
    if min(ks) < 1:
        raise ValueError(f"--k counts edits and must be at least 1, got {min(ks)}")
    if len(set(ks)) < len(ks):
        raise ValueError(f"--k names a number twice: {tuple(ks)}")
    if attack is not None and (reason := attack.refusal(prompts, max(ks))):
        raise ValueError(f"--attack {attack.name}: {reason}")
    if prompts and max(ks) > len(shortest := min(prompts, key=len)):
        raise ValueError(f"--k {max(ks)} is more than all {len(shortest)} characters of the prompt {shortest!r}")


def resolve_device(name: str) -> str:
    """The device that a name means: "auto" is a GPU where torch sees one, else the CPU; under a launcher each process has
    a GPU of its own. ValueError for a name that torch does not know or does not have here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f"--device {name}: choose auto, cpu, cuda, cuda:NUMBER or mps") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch sees no CUDA device here; choose --device cpu or auto")
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and "LOCAL_RANK" in os.environ else name


def identity(options: RunOptions | AttackOptions, without: Collection[str] = ()) -> dict[str, object]:
    """The options as JSON values, for a run's identity: an attack by its label and its parameters, paths as texts."""
    found: dict[str, object] = {}
    for each in dataclasses.fields(options):
        value = getattr(options, each.name)
        if each.name in without:
            continue
        found[each.name] = _plain(value)
        if isinstance(value, Attack):
            found |= {each.name: value.label, f"{each.name}_parameters": value.settings()}
    return found


def _plain(value: object) -> object:
    if isinstance(value, Attack):
        return {"name": value.label, **value.settings()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
