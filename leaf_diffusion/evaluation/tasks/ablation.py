"""Trainings that differ in one choice each, and the probes that their encoders are compared by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from leaf_diffusion.attacks import Attack, LeafAttack
from leaf_diffusion.command_line import refuse_idle
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.evaluation.experiment import Setting
from leaf_diffusion.evaluation.options import RunOptions, SearchOptions, check_edits
from leaf_diffusion.evaluation.tasks.options import check_counts
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
PROBE = f"leaf, rho={PROBE_RHO}"


@dataclass(frozen=True, kw_only=True)
class AblationOptions(RunOptions, SearchOptions):
    """Finetune one encoder several times, each time with one choice changed, and attack the results alike."""

    renamed: ClassVar[Mapping[str, str]] = {"--steps": "--train-steps"}
    encoders: tuple[str, ...] = ("original",)
    """The first is finetuned and is the baseline; further ones are attacked beside."""
    rho: tuple[int, ...] = (1, 10, 50)
    """Budgets of the LEAF attack in training, constrained."""
    unconstrained: bool = True
    """Also train with the largest rho and no constraint."""
    control: bool = True
    """Also train on random typos, which nothing has scored."""
    captions: str | None = None
    """What is trained on. Default: 20,000 captions of the world."""
    column: str | None = None
    """Where the captions stand in records. Default: the first of prompt, caption, text, raw, sentence."""
    split: str | None = None
    """The split of the captions, where the file tells one."""
    train_steps: int = 400
    """Updates of each training."""
    batch_size: int = 32
    lr: float = 1e-3
    train_seed: int = 5
    task: str = "world"
    """The zero-shot task, as of `leaf-diffusion zero-shot-text`."""
    task_column: str | None = None
    """Where the task's texts stand."""
    task_split: str | None = None
    classes: tuple[str, ...] = ()
    limit: int = 96
    """Texts of the task, spread over the classes."""
    k: tuple[int, ...] = (1, 2, 3, 4, 5)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rho or min(self.rho) < 1 or len(set(self.rho)) < len(self.rho):
            raise ValueError(f"--rho needs different budgets, each at least 1, got {self.rho}")
        if self.captions is None:
            refuse_idle(self, "belongs to --captions", "column", "split")
        if self.task == "world":
            refuse_idle(self, "belongs to a --task of your own", "task_column", "task_split", "classes")
        check_edits(self.k, self.attack)
        check_counts(self, "train_steps", "limit")

    def main_setting(self, labels: Sequence[str]) -> Setting:
        """The relative loss under the LEAF attack."""
        place = ("adaptive", labels[1], PROBE, self.constraint, 1)
        return Setting(labels[1], RELATIVE_TEXTFARE.key, *place)

    def recipes(self) -> dict[str, TextFAREConfig]:
        """The trainings by label."""
        steps = self.train_steps
        base = TextFAREConfig(max_steps=steps, batch_size=self.batch_size, lr=self.lr, warmup_steps=max(1, steps // 10),
                              seed=self.train_seed, eval_every=steps, checkpoint_every=max(1, steps // 8))  # fmt: skip
        return recipes(base, self.rho, unconstrained=self.unconstrained, control=self.control)


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
        exact=[k for k, result in results.items() if result.exact],
    )


def probe_values(records: Iterable[AttackedUnderRecipe], attack: str, constraint: str) -> Noted:
    """Accuracy under the attack at every k, and the loss, of each text."""
    found = Noted()
    for record in records:
        name, number = record.encoder, record.number
        leaf = ("adaptive", name, PROBE, constraint, 1)
        found.note(Setting(name, TEXT_ACCURACY.key), number, record.right)
        found.note(Setting(name, RELATIVE_TEXTFARE.key), number, record.clean_loss)
        found.note(Setting(name, RELATIVE_TEXTFARE.key, *leaf), number, record.loss)
        for k, held in record.held.items():
            place = ("adaptive", name, attack, constraint, int(k))
            exact = int(k) in record.exact
            found.note(Setting(name, TEXT_ACCURACY.key, *place), number, record.right and held, exact)
    return found.with_exact()
