"""Zero-shot text classification under attack: every single edit, the searches, and the values that follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from leaf_diffusion.attacks import Attack
from leaf_diffusion.attacks.base import bind_constraint
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.evaluation.experiment import Setting
from leaf_diffusion.evaluation.tasks.query_curve import against_random, query_numbers
from leaf_diffusion.evaluation.tasks.text import Task
from leaf_diffusion.evaluation.tasks.units import Noted
from leaf_diffusion.reports.metrics import OVER_QUERIES, SENSITIVITY, TEXT_ACCURACY
from leaf_diffusion.runs.experiment_records import AllEdits, ClassifiedText, MinimalPairs, SearchedText
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


def accuracies(records: Sequence[ClassifiedText]) -> Noted:
    """Accuracy of each text: clean, under every edit, under so many random edits, under each search."""
    found = Noted()
    most = max((each.edits for record in records for each in record.exact), default=0)
    for record in records:
        name, number = record.encoder, record.number
        found.note(Setting(name, TEXT_ACCURACY.key), number, record.right)
        for each in record.exact:
            place = ("adaptive", name, "exhaustive", each.constraint, 1)
            found.note(Setting(name, TEXT_ACCURACY.key, *place), number, record.right and not each.flips)
            for queries in query_numbers(most):
                drawn = ("adaptive", name, "random edits", each.constraint, 1)
                setting = Setting(name, OVER_QUERIES.key, *drawn, more=(("queries", queries),))
                held = against_random(each.edits, each.flips, queries) if record.right else 0.0
                found.note(setting, number, held)
        for search in record.attacks:
            place = ("adaptive", name, search.label, search.constraint, search.k)
            found.note(Setting(name, TEXT_ACCURACY.key, *place), number, record.right and search.held)
    return found


def sensitivities(records: Iterable[MinimalPairs]) -> Noted:
    """Whether each minimal pair is told apart."""
    found = Noted()
    for record in records:
        for i, told in enumerate(record.told):
            found.note(Setting(record.encoder, SENSITIVITY.key), i, told)
    return found


def mean_queries(records: Iterable[ClassifiedText]) -> dict[str, float]:
    """Encoder calls of each search, on average over the texts."""
    spent: dict[str, list[int]] = {}
    for record in records:
        for each in record.attacks:
            place = f"{record.encoder}, {each.attack}, n={each.n_positions}, k={each.k}, {each.constraint}"
            spent.setdefault(place, []).append(each.queries)
    return {place: sum(each) / len(each) for place, each in spent.items()}
