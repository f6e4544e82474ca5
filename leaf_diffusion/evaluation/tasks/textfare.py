"""The TextFARE loss of prompts: what can be asked, the loss clean and under attacks, and the values that follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from leaf_diffusion.attacks import Attack, Exhaustive, attack_from_name
from leaf_diffusion.command_line import refuse_idle
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.evaluation.experiment import Setting
from leaf_diffusion.evaluation.options import ConstraintName, check_edits
from leaf_diffusion.evaluation.prompts import Prompt
from leaf_diffusion.evaluation.tasks.options import PromptRunOptions
from leaf_diffusion.evaluation.tasks.units import Noted, attacked
from leaf_diffusion.reports.metrics import RELATIVE_TEXTFARE, TEXTFARE
from leaf_diffusion.runs.experiment_records import AttackedText, Losses
from leaf_diffusion.scoring.objectives import Drift
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import constraint_from_name


@dataclass(frozen=True, kw_only=True)
class TextFareOptions(PromptRunOptions):
    """The TextFARE loss of text encoders on clean prompts and under attacks that maximise it."""

    attacks: tuple[Literal["exact-or-beam", "charmer", "leaf", "exhaustive", "random-typos", "genetic"], ...] = (
        "random-typos", "leaf", "charmer", "exact-or-beam",
    )  # fmt: skip
    """exact-or-beam: all single edits of a prompt of 80 characters at most, else a beam; charmer: the paper's; exhaustive: all
    single edits, however long the prompt, and nothing at further k."""
    k: tuple[int, ...] = (1,)
    """Numbers of character edits."""
    n_positions: int = 20
    """Positions that Charmer keeps a round."""
    rho: int = 50
    """Slots and characters that the LEAF attack tries a round."""
    constraint: ConstraintName = "no-new-words"
    seed: int = 0
    """Of the random attacks."""

    def __post_init__(self) -> None:
        check_edits(self.k)
        if not self.attacks:
            raise ValueError("--attacks names at least one attack")
        for name, option in (("charmer", "n_positions"), ("leaf", "rho")):
            if name not in self.attacks:
                refuse_idle(self, f"belongs to the attack {name}", option)

    def main_setting(self, labels: Sequence[str]) -> Setting:
        """The relative loss under the last attack that takes the smallest k."""
        k = min(self.k)
        name = next((name for name in reversed(self.attacks) if takes(name, k)), self.attacks[0])
        return Setting(labels[1], RELATIVE_TEXTFARE.key, "adaptive", labels[1], name, self.constraint, k)

    def chosen(self) -> dict[str, Attack]:
        """The attacks by name."""
        params = {"charmer": {"n_positions": self.n_positions}, "leaf": {"rho": self.rho}}
        return {name: attack_from_name(name, **params.get(name, {})) for name in self.attacks}


def takes(name: str, k: int) -> bool:
    """Whether an attack is asked for `k` edits."""
    return name != Exhaustive.name or k == 1


def measure_losses(
    encoder: TextEncoder,
    label: str,
    objective: Drift,
    attacks: Mapping[str, Attack],
    prompts: Sequence[Prompt],
    *,
    ks: Sequence[int],
    constraint: str,
    seed: int,
) -> list[Losses]:
    """The losses of some prompts: clean, and under every attack at every k that it takes."""
    texts, rows, rule = (
        [prompt.text for prompt in prompts],
        [list[AttackedText]() for _ in prompts],
        constraint_from_name(constraint),
    )
    scorer = Scorer(encoder, objective)
    for name, attack in attacks.items():
        mine = [k for k in ks if takes(name, k)]
        for k, results in attack.path(texts, scorer, mine, constraint=rule, seed=seed).items():
            for row, result in zip(rows, results, strict=True):
                row.append(attacked(result, label, k, name, constraint))
    goals, clean = objective.goals(objective.anchor or encoder, texts), scorer.bind(texts).clean()
    return [
        Losses(encoder=label, prompt_id=prompt.id, prompt=prompt.text, clean=loss, norm=goal.scale, attacked=row)
        for prompt, loss, goal, row in zip(prompts, clean, goals, rows, strict=True)
    ]


def loss_values(records: Iterable[Losses]) -> Noted:
    """The loss of each prompt, and the same over the squared norm of its clean embedding."""
    found = Noted()
    for record in records:
        losses = {Setting(record.encoder, TEXTFARE.key): (record.clean, False)}
        for row in record.attacked:
            place = ("adaptive", record.encoder, row.attack, row.constraint, row.k)
            losses[Setting(record.encoder, TEXTFARE.key, *place)] = (row.score, row.exact)
        for setting, (loss, exact) in losses.items():
            found.note(setting, record.prompt_id, loss, exact)
            found.note(replace(setting, metric=RELATIVE_TEXTFARE.key), record.prompt_id, loss / record.norm, exact)
    return found.with_exact()
