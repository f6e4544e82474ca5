"""What each choice of the finetuning buys: rho, the constraint, the attack itself; every encoder trained alike but for it.

Paper: section 4, the rho ablation (rho in {1, 10, 50}), with and without the constraint, and robustness at k = 1..5.
Runs as `leaf-diffusion ablate` and as `python eval/ablation.py`; trained encoders stay in the run's folder.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from leaf_diffusion.attacks import Charmer, LeafAttack
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.evaluation.experiment import Common, Experiment, Setting, Stage, load_encoders, run
from leaf_diffusion.evaluation.t2i.plan import content_id
from leaf_diffusion.evaluation.tasks.text import TEMPLATES, load_task
from leaf_diffusion.finetune import TextFAREConfig, finetune_text_encoder, read_captions
from leaf_diffusion.reports.metrics import RELATIVE_TEXTFARE, TEXT_ACCURACY
from leaf_diffusion.reports.pages.experiment import Page, Section, curve, matrices
from leaf_diffusion.scoring.objectives import Drift, Margin
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import constraint_from_name
from leaf_diffusion.text.visible import isolated
from leaf_diffusion.world.robust import training_captions

CONTROL = "random typos"
PROBE_RHO = 50
"""Budget of the LEAF attack that the loss is measured under."""


@dataclass(frozen=True)
class AblationOptions(Common):
    """Finetune one encoder several times, each time with one choice changed, and attack the results alike."""

    encoders: tuple[str, ...] = ("original",)
    """The first is finetuned and is the baseline; further ones are attacked beside."""
    rho: tuple[int, ...] = (1, 10, 50)
    """Budgets of the LEAF attack in training, constrained."""
    unconstrained: bool = True
    """Also train with the largest rho and no constraint."""
    control: bool = True
    """Also train on random typos, which nothing has scored."""
    captions: Path | None = None
    """What is trained on. Default: 20,000 captions of the world."""
    steps: int = 400
    """Updates of each training."""
    batch_size: int = 32
    lr: float = 1e-3
    train_seed: int = 5
    task: str = "world"
    """The zero-shot task, as of `leaf-diffusion zero-shot-text`."""
    classes: tuple[str, ...] = ()
    limit: int = 96
    """Texts of the task, spread over the classes."""
    k: tuple[int, ...] = (1, 2, 3, 4, 5)
    n_positions: int = 20
    """Positions that Charmer keeps a round."""
    constraint: Literal["no-new-words", "published", "none"] = "no-new-words"
    """Of the attacks that the encoders are compared under."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rho or min(self.rho) < 1 or len(set(self.rho)) < len(self.rho):
            raise ValueError(f"--rho needs different budgets, each at least 1, got {self.rho}")
        if not self.k or min(self.k) < 1 or len(set(self.k)) < len(self.k):
            raise ValueError(f"--k needs different numbers of edits, each at least 1, got {self.k}")
        for name in ("steps", "limit", "n_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")

    def recipes(self) -> dict[str, TextFAREConfig]:
        """The trainings by label."""
        common: dict[str, Any] = {
            "max_steps": self.steps,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "warmup_steps": max(1, self.steps // 10),
            "seed": self.train_seed,
            "eval_every": self.steps,
            "checkpoint_every": max(1, self.steps // 8),
        }
        made = {f"rho={rho}": TextFAREConfig(rho=rho, **common) for rho in self.rho}
        if self.unconstrained:
            most = max(self.rho)
            made[f"rho={most}, unconstrained"] = TextFAREConfig(rho=most, constraint="none", **common)
        if self.control:
            made[CONTROL] = TextFAREConfig(attack="random-typos", **common)
        return made


class Ablation(Experiment[AblationOptions]):
    name = "ablate"

    def __init__(self, options: AblationOptions) -> None:
        super().__init__(options)
        self.recipes = options.recipes()
        self.given = load_encoders(options.encoders, options.device)
        self.base = next(iter(self.given.values()))
        if taken := self.given.keys() & self.recipes.keys():
            raise ValueError(f"--encoders: the label {sorted(taken)[0]!r} is that of a training; write LABEL=SOURCE")
        self.captions = training_captions(20_000) if options.captions is None else read_captions(options.captions)
        self.task = load_task(
            options.task, images=8, column=None, split=None, classes=options.classes, templates=TEMPLATES
        )
        self.trained: dict[str, TextEncoder] = {}

    def labels(self) -> Sequence[str]:
        return [*self.given, *self.recipes]

    def settings(self) -> dict[str, Any]:
        recipes = {label: asdict(recipe) for label, recipe in self.recipes.items()}
        prints = {label: encoder.fingerprint for label, encoder in self.given.items()}
        texts = [[self.task.texts[i], self.task.labels[i]] for i in self.task.spread(self.options.limit)]
        return {
            "fingerprints": prints,
            "recipes": recipes,
            "texts": texts,
            "caption_list": content_id(captions=list(self.captions)),
        }

    def stages(self) -> Sequence[Stage]:
        trainings = {
            content_id(unit="training", recipe=asdict(recipe)): label for label, recipe in self.recipes.items()
        }
        texts = {
            content_id(unit="ablation", encoder=label, number=i, text=self.task.texts[i]): (label, i)
            for label in self.labels()
            for i in self.task.spread(self.options.limit)
        }
        return [
            Stage("trainings", trainings, lambda _, labels: [self.train(label) for label in labels], size=1),
            Stage("texts", texts, lambda _, units: [self.attack(*unit) for unit in units], size=4),
        ]

    def place(self, label: str) -> Path:
        """The folder of a trained encoder."""
        return self.folder / "encoders" / content_id(recipe=asdict(self.recipes[label]))

    def train(self, label: str) -> dict[str, Any]:
        folder = finetune_text_encoder(self.base, self.captions, self.place(label), self.recipes[label])
        return {
            "label": label,
            "folder": str(folder.relative_to(self.folder)),
            "fingerprint": self.encoder(label).fingerprint,
        }

    def encoder(self, label: str) -> TextEncoder:
        if label in self.given:
            return self.given[label]
        if label not in self.trained:
            self.trained[label] = load_text_encoder(self.place(label), device=self.options.device)
        return self.trained[label]

    def attack(self, label: str, number: int) -> dict[str, Any]:
        """Zero-shot margin at every k, and the TextFARE loss under one budget of the LEAF attack."""
        encoder, text, options = self.encoder(label), self.task.texts[number], self.options
        constraint = constraint_from_name(options.constraint)
        scorer = Scorer(encoder, Margin(self.task.anchors(encoder), [self.task.labels[number]]))
        found = Charmer(n_positions=options.n_positions).path([text], scorer, options.k, constraint=constraint)
        drift = Scorer(encoder, Drift("l2", anchor=self.base))
        norm = drift.objective.goals(self.base, [text])[0].scale
        (worst,) = LeafAttack(rho=PROBE_RHO)([text], drift, k=1, constraint=constraint, seed=options.seed)
        results = {k: result for k, (result,) in found.items()}
        return {
            "encoder": label,
            "number": number,
            "right": next(iter(results.values())).clean_score <= 0,
            "held": {str(k): result.score <= 0 for k, result in results.items()},
            "clean_loss": worst.clean_score / norm,
            "loss": worst.score / norm,
        }

    def values(self, records: Mapping[str, Sequence[dict[str, Any]]]) -> dict[Setting, dict[str, float]]:
        found: dict[Setting, dict[str, float]] = {}
        for record in records["texts"]:
            name, key = record["encoder"], f"{record['number']:06d}"
            rule = self.options.constraint
            noted = {
                Setting(name, TEXT_ACCURACY.key): record["right"],
                Setting(name, RELATIVE_TEXTFARE.key): record["clean_loss"],
            }
            noted[Setting(name, RELATIVE_TEXTFARE.key, "adaptive", name, f"leaf, rho={PROBE_RHO}", rule, 1)] = record[
                "loss"
            ]
            for k, held in record["held"].items():
                setting = Setting(name, TEXT_ACCURACY.key, "adaptive", name, "charmer", rule, int(k))
                noted[setting] = record["right"] and held
            for setting, value in noted.items():
                found.setdefault(setting, {})[key] = float(value)
        return found

    def page(self, rows: Sequence[dict[str, Any]], records: Mapping[str, Sequence[dict[str, Any]]]) -> Page:
        labels = list(self.labels())
        tables = matrices(
            [row for row in rows if row["baseline"] in (None, labels[0])], [TEXT_ACCURACY, RELATIVE_TEXTFARE]
        )
        plot = curve(rows, TEXT_ACCURACY, labels, x=lambda row: row["k"], xlabel="edits k (Charmer)", name="ablation")
        attacked = [
            row for row in rows if row["metric"] == RELATIVE_TEXTFARE.key and row["k"] and row["baseline"] is None
        ]
        said = ", ".join(f"{isolated(row['encoder'])} {RELATIVE_TEXTFARE.show(row['mean'])}" for row in attacked)
        about = f"{self.options.steps} updates of {self.options.batch_size} captions each, from {isolated(labels[0])}; all attacked alike."
        facts = {"texts": str(len(self.task.spread(self.options.limit))), "constraint": self.options.constraint}
        sections = [Section("What each choice buys", about, tables, [("Texts classified right", plot)])]
        return Page(
            "ablation of the finetuning", f"Relative loss under the LEAF attack: {said}", facts, labels, sections
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(Ablation, AblationOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
