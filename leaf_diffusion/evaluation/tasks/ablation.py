"""Trainings that differ in one choice each, and the probes that their encoders are compared by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from leaf_diffusion.attacks import Attack, LeafAttack
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.evaluation.experiment import Setting
from leaf_diffusion.evaluation.tasks.text import Task
from leaf_diffusion.evaluation.tasks.units import Noted
from leaf_diffusion.finetune import TextFAREConfig
from leaf_diffusion.reports.metrics import RELATIVE_TEXTFARE, TEXT_ACCURACY
from leaf_diffusion.runs.experiment_records import AttackedUnderRecipe
from leaf_diffusion.scoring.objectives import Drift, Margin
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import constraint_from_name

PROBE_RHO = 50
"""Budget of the LEAF attack that the loss is measured under."""


def recipes(
    base: TextFAREConfig, rhos: Sequence[int], *, unconstrained: bool, control: bool
) -> dict[str, TextFAREConfig]:
    """`base` with each budget; with the largest and no constraint; on random typos, which nothing has scored."""
    made = {f"rho={rho}": replace(base, rho=rho) for rho in rhos}
    if unconstrained:
        made[f"rho={max(rhos)}, unconstrained"] = replace(base, rho=max(rhos), constraint="none")
    return made | ({"random typos": replace(base, attack="random-typos")} if control else {})


def probe(
    encoder: TextEncoder,
    label: str,
    anchor: TextEncoder,
    task: Task,
    number: int,
    *,
    attack: Attack,
    ks: Sequence[int],
    constraint: str,
    seed: int,
) -> AttackedUnderRecipe:
    """A text under `attack` on the zero-shot margin at every k, and its TextFARE loss (to the clean embedding of `anchor`,
    over that embedding's squared norm) clean and under one budget of the LEAF attack."""
    text, rule = task.texts[number], constraint_from_name(constraint)
    scorer = Scorer(encoder, Margin(task.anchors(encoder), [task.labels[number]]))
    results = {k: result for k, (result,) in attack.path([text], scorer, ks, constraint=rule, seed=seed).items()}
    drift = Drift("l2", anchor=anchor)
    norm = drift.goals(anchor, [text])[0].scale
    (worst,) = LeafAttack(rho=PROBE_RHO)([text], Scorer(encoder, drift), k=1, constraint=rule, seed=seed)
    return AttackedUnderRecipe(
        encoder=label,
        number=number,
        right=results[ks[0]].clean_score <= 0,
        held={str(k): result.score <= 0 for k, result in results.items()},
        clean_loss=worst.clean_score / norm,
        loss=worst.score / norm,
    )


def probe_values(records: Iterable[AttackedUnderRecipe], constraint: str) -> Noted:
    """Accuracy at every k, and the loss, of each text."""
    found = Noted()
    for record in records:
        name, number = record.encoder, record.number
        leaf = ("adaptive", name, f"leaf, rho={PROBE_RHO}", constraint, 1)
        found.note(Setting(name, TEXT_ACCURACY.key), number, record.right)
        found.note(Setting(name, RELATIVE_TEXTFARE.key), number, record.clean_loss)
        found.note(Setting(name, RELATIVE_TEXTFARE.key, *leaf), number, record.loss)
        for k, held in record.held.items():
            charmer = ("adaptive", name, "charmer", constraint, int(k))
            found.note(Setting(name, TEXT_ACCURACY.key, *charmer), number, record.right and held)
    return found
