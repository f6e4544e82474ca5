"""Zero-shot text classification under attack: every single edit, the searches, and the values that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from leaf_diffusion.attacks import Attack, attack_from_name
from leaf_diffusion.attacks.base import bind_constraint
from leaf_diffusion.command_line import refuse_idle
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.evaluation.options import ConstraintName, check_edits
from leaf_diffusion.evaluation.results import Setting
from leaf_diffusion.evaluation.tasks.options import TaskOptions, check_counts
from leaf_diffusion.evaluation.tasks.text import Task
from leaf_diffusion.reports.metrics import TEXT_ACCURACY
from leaf_diffusion.runs.experiment_records import AllEdits, ClassifiedText, SearchedText, search_label
from leaf_diffusion.scoring.objectives import Margin
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import constraint_from_name
from leaf_diffusion.text.edits import neighbours


@dataclass(frozen=True)
class Search:
    """An attack at several numbers of edits; `n_positions` names Charmer's setting in the results."""

    name: str
    attack: Attack
    ks: Sequence[int]
    n_positions: int | None = None

    @property
    def label(self) -> str:
        return search_label(self.name, self.n_positions)


@dataclass(frozen=True, kw_only=True)
class ZeroShotTextOptions(TaskOptions):
    """Zero-shot text classification, clean and attacked, with the exact worst single edit."""

    anchors: Path | None = None
    """Images of the classes, a sub-folder a class: the classes as the image tower of --image-encoder sees them."""
    image_encoder: str | None = None
    """The image tower of the CLIP that the text encoders belong to: a folder, a Hub id, openclip:..."""
    exact: bool = True
    """Score every allowed single edit. About 191 queries a character: leave it out for long texts (--no-exact)."""
    attacks: tuple[str, ...] = ("exact-or-beam",)
    """As of `leaf-diffusion attack`: exact-or-beam, charmer (the paper's), leaf, genetic, tokens, words, keyboard, ..."""
    k: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Numbers of edits."""
    n_positions: tuple[int, ...] = (20,)
    """Positions that Charmer keeps a round; further ones are tried at k=1 for the curve over queries."""
    constraints: tuple[ConstraintName, ...] = ("no-new-words",)
    """ "none" gives the figures without the constraint."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_edits(self.k)
        check_counts(self, "limit", "images")
        if (self.anchors is None) != (self.image_encoder is None):
            raise ValueError("--anchors needs --image-encoder, which sees the images, and the other way round")
        if self.anchors is not None and self.task == "world":
            raise ValueError("--anchors belongs to a --task of your own; the world draws its own images")
        if self.anchors is None and self.task != "world":
            refuse_idle(self, "belongs to --anchors, or to the world's task", "images")
        if "charmer" not in self.attacks:
            refuse_idle(self, "belongs to the attack charmer", "n_positions")
        if not self.constraints or not self.n_positions or not self.attacks:
            raise ValueError("--attacks, --constraints and --n-positions each need one value at least")
        if "exhaustive" in self.attacks:
            raise ValueError("--attacks: the exhaustive search is what --exact does")

    def main_setting(self, labels: Sequence[str]) -> Setting:
        """Texts classified right under every edit; where these are left out, under the first attack at the smallest k."""
        first = self.searches()[0]
        attack, k = ("exhaustive", 1) if self.exact else (first.label, min(first.ks))
        place = ("adaptive", labels[1], attack, self.constraints[0], k)
        return Setting(labels[1], TEXT_ACCURACY.key, *place, exact=self.exact)

    def searches(self) -> list[Search]:
        """Every attack at every k; Charmer with further numbers of positions at k=1."""
        found = []
        for name in self.attacks:
            positions = self.n_positions if name == "charmer" else (None,)
            for i, n in enumerate(positions):
                attack = attack_from_name(name, **({} if n is None else {"n_positions": n}))
                for rule in self.constraints:
                    attack.check_constraint(rule)
                found.append(Search(name, attack, (1,) if i else self.k, n))
        return found


def attack_text(
    encoder: TextEncoder,
    label: str,
    task: Task,
    anchors: Tensor,
    number: int,
    *,
    searches: Sequence[Search],
    constraints: Sequence[str],
    exact: bool,
    seed: int,
) -> ClassifiedText:
    """One text against one encoder: clean, every single edit (`exact`), and the searches under each constraint."""
    text = task.texts[number]
    scorer = Scorer(encoder, Margin(anchors, [task.labels[number]]))
    with torch.inference_mode():
        features = normalize(encoder.features(encoder.tokenize(encoder.preprocess([text]))), dim=-1)
    found = []
    for rule in constraints:
        for search in searches:
            results = search.attack.path([text], scorer, search.ks, constraint=constraint_from_name(rule), seed=seed)
            for k, (result,) in results.items():
                each = SearchedText(
                    attack=search.name,
                    n_positions=search.n_positions,
                    k=k,
                    constraint=rule,
                    perturbed=result.perturbed,
                    queries=result.queries,
                    held=result.score <= 0,
                    truncated=result.truncated,
                    exact=result.exact,
                )
                found.append(each)
    return ClassifiedText(
        encoder=label,
        number=number,
        text=text,
        right=scorer.bind([text]).clean()[0] <= 0,
        said=task.classes[int((features[0] @ anchors.to(features.device).T).argmax())],
        exact=every_edit(scorer, text, constraints) if exact else [],
        attacks=found,
    )


def every_edit(scorer: Scorer, text: str, constraints: Sequence[str]) -> list[AllEdits]:
    """How many single edits each constraint allows, how many of them flip the label, and the worst one."""
    edits, found = neighbours(text), []
    masks = [bind_constraint(constraint_from_name(rule), [text])(0, text, edits) for rule in constraints]
    union = masks[0].copy()
    for mask in masks[1:]:
        union |= mask
    scores = torch.full((len(edits),), -torch.inf)
    scores[torch.from_numpy(union)] = scorer.bind([text])([edits[union]])[0]
    for rule, mask in zip(constraints, masks, strict=True):
        allowed = scores[torch.from_numpy(mask)]
        worst = edits[mask].text(int(allowed.argmax())) if len(allowed) else text
        found.append(AllEdits(constraint=rule, edits=len(allowed), flips=int((allowed > 0).sum()), worst=worst))
    return found
