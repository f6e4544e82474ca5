"""What the records of a run come to: values of each setting, counts of what was truncated, unchanged or never seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from leaf_diffusion.evaluation.results import Comparison, Setting
from leaf_diffusion.evaluation.t2i.judges import Judges
from leaf_diffusion.evaluation.t2i.plan import Cell, Plan
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.reports.metrics import attack_notes
from leaf_diffusion.reports.results import METRICS, SCORE_FIELDS
from leaf_diffusion.reports.sections import Cell as Shown
from leaf_diffusion.reports.sections import Matrix
from leaf_diffusion.reports.verdicts import verdict
from leaf_diffusion.runs import SWAP_FIELDS, ResultRow, Values, prompt_values
from leaf_diffusion.runs.records import AttackRecord, ImageRecord, ScoreRecord
from leaf_diffusion.runs.results import AttackSet, Counts
from leaf_diffusion.text.visible import isolated


def setting(plan: Plan, cell: Cell, metric: str, attack: str, constraint: str) -> Setting:
    """What a metric of a cell is measured of. An adaptive attack's source is the encoder itself."""
    seeds = 1 if cell.protocol == "floor" else plan.seeds
    searched = cell.source is not None
    return Setting(
        cell.encoder,
        metric,
        cell.protocol,
        cell.source,
        attack if searched else None,
        constraint if searched else None,
        cell.k,
        seeds=seeds,
    )


def setting_values(
    plan: Plan, images: Sequence[ImageRecord], scores: Sequence[ScoreRecord], attack: str, constraint: str
) -> dict[Setting, Values]:
    """A number a prompt, the mean over noises, for each cell and metric.

    The drift of clean prompts is that of a swap: how far an encoder's images are from the first one's, which has none
    itself.
    """
    clean = [image for image in images if image.protocol == "clean"]
    found = {**prompt_values(images, scores, SCORE_FIELDS), **prompt_values(clean, scores, SWAP_FIELDS)}
    values = {(Cell(*key), metric): each for (key, metric), each in found.items()}
    return {
        setting(plan, cell, metric, attack, constraint): values[cell, metric]
        for cell in plan.cells
        for metric in SCORE_FIELDS
        if (cell, metric) in values
    }


def pairs_of(labels: Sequence[str]) -> list[tuple[str, str]]:
    """(encoder, baseline) of every difference: all to the first one, and among the others the earlier to the later."""
    return [(b, a) if a == labels[0] else (a, b) for a, b in combinations(labels, 2)]


def named_attack(setup: Setup) -> tuple[str, str]:
    """Attack and constraint of the result rows: what is searched with, or what a file says of its sets."""
    if not setup.given_attacks:
        return setup.options.attack.label, setup.options.constraint
    prompts = {prompt.text for prompt in setup.prompts}
    mine = [each for each in setup.given_attacks if each.prompt in prompts]
    attack = "+".join(sorted({each.attack or "given" for each in mine}))
    return attack, "+".join(sorted({each.constraint or "unknown" for each in mine}))


def main_comparison(setup: Setup, judges: Judges) -> Comparison | None:
    """The second encoder against the first under the adaptive attack at the smallest k (else under the first transferred one,
    else without any), by right images where scenes are known, else by CLIPScore, else by drift."""
    if len(setup.encoders) < 2:
        return None
    first, second = list(setup.encoders)[:2]
    order = ("adaptive", "transfer", "clean")
    mine = [cell for cell in setup.plan.cells if cell.encoder == second and cell.protocol in order]
    cell = min(mine, key=lambda cell: (order.index(cell.protocol), cell.k))
    judged = [] if judges.clip is None else setup.sources_that_are(judges.clip.text_fingerprint)
    metric = "drift"
    if judges.scenes is not None and all(prompt.scene is not None for prompt in setup.prompts):
        metric = "scene_accuracy"
    elif judges.clip is not None and not {cell.source, first if cell.protocol == "adaptive" else None} & set(judged):
        metric = "clip_score"
    if metric == "drift" and cell.protocol == "clean":  # nothing moves
        return None
    return Comparison(setting(setup.plan, cell, metric, *named_attack(setup)), first)


def attack_counts(attacks: Iterable[AttackRecord]) -> list[AttackSet]:
    """For each attack set: how many prompts, how far, unchanged, truncated, tokens never seen, queries."""
    sets: dict[tuple[str, int], list[AttackRecord]] = defaultdict(list)
    for each in attacks:
        sets[each.source, each.k].append(each)

    def mean(values: Iterable[float | None]) -> float | None:
        known = [float(value) for value in values if value is not None]
        return float(np.mean(known)) if known else None

    return [
        AttackSet(
            source=source,
            k=k,
            n=len(found),
            unchanged=sum(each.prompt == each.perturbed for each in found),
            truncated=sum(each.truncated for each in found),
            distance=mean(each.distance for each in found),
            score=mean(each.score for each in found),
            queries=mean(each.queries for each in found),
            unseen_tokens=mean(each.unseen_tokens for each in found),
            exact=sum(bool(each.exact) for each in found),
        )
        for (source, k), found in sets.items()
    ]


def image_counts(images: Sequence[ImageRecord]) -> Counts:
    """How many images were judged, drawn (equal ones are drawn once), and made from a truncated prompt."""
    return Counts(
        images=len(images),
        drawn=len({image.image for image in images}),
        truncated=sum(image.truncated for image in images),
        given_unchanged=sum(image.source is not None and image.given == image.original for image in images),
    )


def main_figures(rows: Sequence[ResultRow]) -> Matrix:
    """The main metric of each encoder, and its paired difference to the first."""
    metrics = {row.metric for row in rows}
    metric = next(name for name in ("scene_accuracy", "clip_score", "drift") if name in metrics or name == "drift")
    left_out = ("floor", "clean") if metric == "drift" else ("floor",)  # a swap's drift is no attack's
    mine = [row for row in rows if row.metric == metric and row.protocol not in left_out]
    encoders = list(dict.fromkeys(row.encoder for row in mine))
    digits = 1 if metric == "clip_score" else 2
    cells: dict[str, dict[str, Shown]] = {}
    sizes: dict[str, set[int]] = defaultdict(set)
    for row in mine:
        where = _where(row)
        line = cells.setdefault(where, dict.fromkeys(encoders, Shown("")))
        sizes[where].add(row.n)
        if row.baseline is None:
            line[row.encoder] = Shown(f"{row.mean:.{digits}f}")
        elif row.baseline == encoders[0]:  # differences follow the means in the rows
            low, high = row.ci_low, row.ci_high  # one prompt shows no spread
            interval = "" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
            interval += " exploratory" if verdict(row, METRICS[metric]) == "exploratory" else ""
            line[row.encoder] = Shown(line[row.encoder].text, f"{row.mean:+.{digits}f}{interval}")
    title = f"{metric.replace('_', ' ')}, and the difference to {isolated(encoders[0]) if encoders else 'the first'}"
    lines = [(where, list(line.values()), "–".join(map(str, sorted(sizes[where])))) for where, line in cells.items()]
    columns = [isolated(label) for label in encoders]
    notes = attack_notes((row for row in mine if row.baseline is None), METRICS[metric])
    return Matrix(f"{title} with its 95% interval over prompts", "", columns, lines, notes)


def _where(row: ResultRow) -> str:
    attacked = "attacked on itself" if row.protocol == "adaptive" else f"attacked on {isolated(row.source or '')}"
    return ("clean" if row.protocol == "clean" else attacked) + (f", k={row.k}" if row.k else "")


def said(counts: Iterable[AttackSet]) -> list[str]:
    """A sentence about each attack set."""
    sentences = []
    for each in counts:
        share = each.unseen_tokens
        unseen = "" if share is None else f", {share:.0%} of the tokens never seen in training"
        sentences.append(
            f"attacks on {isolated(each.source)}, k={each.k}: {each.n} prompts, "
            f"{each.unchanged} unchanged, {each.truncated} truncated{unseen}, exact for {each.exact} of {each.n}"
        )
    return sentences
