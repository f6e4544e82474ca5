"""Zero-shot text classification under attack: exact robust accuracy at k=1, Charmer over k, accuracy over queries.

Paper: section 4, zero-shot text classification. The attack maximises the margin of the best wrong class and stops once
the label flips. At k=1 every allowed edit is scored, so the robust accuracy is exact over the alphabet and the
context of 77 tokens: no attack within them finds more. Runs as `leaf-diffusion zero-shot-text`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.functional import normalize

from leaf_diffusion.attacks import attack_from_name
from leaf_diffusion.attacks.base import bind_constraint
from leaf_diffusion.encoders.image_encoder import load_image_encoder
from leaf_diffusion.evaluation.experiment import Common, Experiment, Setting, Stage, load_encoders, run
from leaf_diffusion.evaluation.t2i.attack import find
from leaf_diffusion.evaluation.t2i.plan import content_id
from leaf_diffusion.evaluation.tasks.images import image_anchors
from leaf_diffusion.evaluation.tasks.query_curve import against_random, query_numbers
from leaf_diffusion.evaluation.tasks.text import TEMPLATES, load_task, sensitivity
from leaf_diffusion.reports.metrics import OVER_QUERIES, TEXT_ACCURACY
from leaf_diffusion.reports.pages.experiment import Page
from leaf_diffusion.reports.pages.zero_shot import SENSITIVITY, page
from leaf_diffusion.runs import RunStore
from leaf_diffusion.scoring.objectives import Margin
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import constraint_from_name
from leaf_diffusion.text.edits import neighbours

Rule = Literal["no-new-words", "published", "none"]


@dataclass(frozen=True)
class ZeroShotTextOptions(Common):
    """Zero-shot text classification, clean and attacked, with the exact worst single edit."""

    task: str = "world"
    """ "world" (a caption a class of colour and noun, image anchors), a file of labelled texts (JSONL, CSV, TSV, Parquet: a column "label"), or
    dataset:NAME of Hugging Face datasets ("dataset:ag_news")."""
    column: str | None = None
    """Where the texts stand. Default: the first of prompt, caption, text, raw, sentence."""
    split: str | None = None
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers. Default: the labels as they are written."""
    templates: tuple[str, ...] = TEMPLATES
    """Texts around a class name, whose mean feature is the class; the world's task takes images instead."""
    anchors: Path | None = None
    """Images of the classes, a sub-folder a class: the classes as the image tower of --image-encoder sees them."""
    image_encoder: str | None = None
    """The image tower of the CLIP that the text encoders belong to: a folder, a Hub id, openclip:..."""
    images: int = 8
    """Images a class behind each class feature, of the world's task and of --anchors."""
    limit: int | None = None
    """Number of texts, spread over the classes. Default: all."""
    exact: bool = True
    """Score every allowed single edit. About 191 queries a character: leave it out for long texts (--no-exact)."""
    attacks: tuple[str, ...] = ("charmer",)
    """As of `leaf-diffusion attack`: charmer, leaf, tokens, keyboard, worst-keyboard, ..."""
    k: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Numbers of edits."""
    n_positions: tuple[int, ...] = (20,)
    """Positions that Charmer keeps a round; further ones are tried at k=1 for the curve over queries."""
    constraints: tuple[Rule, ...] = ("no-new-words",)
    """ "none" gives the figures without the constraint."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1 or len(set(self.k)) < len(self.k):
            raise ValueError(f"--k needs different numbers of edits, each at least 1, got {self.k}")
        for name in ("limit", "images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if (self.anchors is None) != (self.image_encoder is None):
            raise ValueError("--anchors needs --image-encoder, which sees the images, and the other way round")
        if self.anchors is not None and self.task == "world":
            raise ValueError("--anchors belongs to a --task of your own; the world draws its own images")
        if not self.constraints or not self.n_positions or not self.attacks:
            raise ValueError("--attacks, --constraints and --n-positions each need one value at least")
        if "exhaustive" in self.attacks:
            raise ValueError("--attacks: the exhaustive search is what --exact does")


class ZeroShotText(Experiment[ZeroShotTextOptions]):
    name = "zero-shot-text"

    def __init__(self, options: ZeroShotTextOptions) -> None:
        super().__init__(options)
        for attack in options.attacks:
            attack_from_name(attack)
        self.encoders = load_encoders(options.encoders, options.device)
        self.task = load_task(
            options.task,
            images=options.images,
            column=options.column,
            split=options.split,
            classes=options.classes,
            templates=options.templates,
        )
        if options.anchors is not None and options.image_encoder is not None:
            tower = load_image_encoder(options.image_encoder, device=options.device)
            seen = image_anchors(options.anchors, self.task.classes, tower, options.images)
            for label, encoder in self.encoders.items():
                if (width := encoder.features(encoder.tokenize(["a"])).shape[1]) != seen.shape[1]:
                    raise ValueError(f"--encoders {label} has features of {width}, --image-encoder of {seen.shape[1]}")
            self.anchors = dict.fromkeys(self.encoders, seen)
        else:
            self.anchors = {label: self.task.anchors(encoder) for label, encoder in self.encoders.items()}
        self.numbers = self.task.spread(options.limit)

    def settings(self) -> dict[str, Any]:
        prints = {label: encoder.fingerprint for label, encoder in self.encoders.items()}
        texts = [[self.task.texts[i], self.task.labels[i]] for i in self.numbers]
        named: dict[str, Any] = {"fingerprints": prints, "texts": texts, "class_names": list(self.task.classes)}
        if self.options.anchors is not None:  # what the images are to the classifier
            shown = next(iter(self.anchors.values())).float().cpu().numpy().tobytes()
            named["anchor_features"] = hashlib.sha256(shown).hexdigest()
        return named

    def stages(self) -> Sequence[Stage]:
        units = {
            content_id(unit="zero-shot-text", encoder=label, text=self.task.texts[i], number=i): (label, i)
            for label in self.encoders
            for i in self.numbers
        }
        stages = [Stage("texts", units, lambda _, chosen: [self.attack_text(*unit) for unit in chosen], size=1)]
        if self.task.pairs:
            pairs = {content_id(unit="minimal pairs", encoder=label): label for label in self.encoders}
            stages.append(Stage("pairs", pairs, self.pairs))
        return stages

    def pairs(self, store: RunStore, labels: Sequence[str]) -> list[dict[str, Any]]:
        return [{"encoder": x, "told": sensitivity(self.encoders[x], self.anchors[x])} for x in labels]

    def searches(self) -> list[tuple[str, int | None, tuple[int, ...]]]:
        """(attack, positions of Charmer, numbers of edits)"""
        ks, found = self.options.k, list[tuple[str, int | None, tuple[int, ...]]]()
        for name in self.options.attacks:
            if name == "charmer":
                first, *more = self.options.n_positions
                found += [(name, first, ks), *((name, n, (1,)) for n in more)]
            else:
                found.append((name, None, ks))
        return found

    def attack_text(self, encoder_label: str, number: int) -> dict[str, Any]:
        """One text against one encoder: every edit, and the searches."""
        encoder, anchors = self.encoders[encoder_label], self.anchors[encoder_label]
        text, label = self.task.texts[number], self.task.labels[number]
        scorer = Scorer(encoder, Margin(anchors, [label]))
        clean = scorer.bind([text]).clean()[0]
        with torch.inference_mode():
            features = normalize(encoder.features(encoder.tokenize(encoder.preprocess([text]))), dim=-1)
        logits = features[0] @ anchors.to(features.device).T
        record: dict[str, Any] = {"encoder": encoder_label, "number": number, "text": text, "right": clean <= 0}
        record |= {"said": self.task.classes[int(logits.argmax())], "exact": [], "attacks": []}
        if self.options.exact:
            record["exact"] = self.every_edit(scorer, text)
        for rule in self.options.constraints:
            for name, n, ks in self.searches():
                attack = attack_from_name(name, **({} if n is None else {"n_positions": n}))
                constraint = constraint_from_name(rule)
                for k, (result,) in find(attack, [text], scorer, ks, constraint, self.options.seed).items():
                    found = {"attack": name, "n_positions": n, "k": k, "constraint": rule}
                    found |= {"perturbed": result.perturbed, "queries": result.queries, "held": result.score <= 0}
                    record["attacks"].append(found | {"truncated": result.truncated})
        return record

    def every_edit(self, scorer: Scorer, text: str) -> list[dict[str, Any]]:
        """How many single edits each constraint allows, how many of them flip the label, and the worst one."""
        edits, found = neighbours(text), []
        masks = [
            bind_constraint(constraint_from_name(rule), [text])(0, text, edits) for rule in self.options.constraints
        ]
        union = masks[0].copy()
        for mask in masks[1:]:
            union |= mask
        scores = torch.full((len(edits),), -torch.inf)
        scores[torch.from_numpy(union)] = scorer.bind([text])([edits[union]])[0]
        for rule, mask in zip(self.options.constraints, masks, strict=True):
            allowed = scores[torch.from_numpy(mask)]
            worst = edits[mask].text(int(allowed.argmax())) if len(allowed) else text
            flips = int((allowed > 0).sum())
            found.append({"constraint": rule, "edits": len(allowed), "flips": flips, "worst": worst})
        return found

    def values(self, records: Mapping[str, Sequence[dict[str, Any]]]) -> dict[Setting, dict[str, float]]:
        found: dict[Setting, dict[str, float]] = {}

        def note(setting: Setting, number: int, value: float) -> None:
            found.setdefault(setting, {})[f"{number:06d}"] = value

        most = max((each["edits"] for record in records["texts"] for each in record["exact"]), default=0)
        for record in records["texts"]:
            name, number, right = record["encoder"], record["number"], record["right"]
            note(Setting(name, TEXT_ACCURACY.key), number, float(right))
            for each in record["exact"]:
                place = ("adaptive", name, "exhaustive", each["constraint"], 1)
                note(Setting(name, TEXT_ACCURACY.key, *place), number, float(right and not each["flips"]))
                for queries in query_numbers(most):
                    setting = Setting(name, OVER_QUERIES.key, "adaptive", name, "random edits", each["constraint"], 1,
                                      more=(("queries", queries),))  # fmt: skip
                    note(setting, number, against_random(each["edits"], each["flips"], queries) if right else 0.0)
            for each in record["attacks"]:
                label = each["attack"] if each["n_positions"] is None else f"{each['attack']}, n={each['n_positions']}"
                place = ("adaptive", name, label, each["constraint"], each["k"])
                note(Setting(name, TEXT_ACCURACY.key, *place), number, float(right and each["held"]))
        for record in records.get("pairs", []):
            for i, told in enumerate(record["told"]):
                note(Setting(record["encoder"], SENSITIVITY.key), i, told)
        return found

    def extra(self, records: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
        attacks = [each for record in records["texts"] for each in record["attacks"]]
        mean_queries: dict[str, list[int]] = {}
        for record in records["texts"]:
            for each in record["attacks"]:
                place = f"{record['encoder']}, {each['attack']}, n={each['n_positions']}, k={each['k']}, {each['constraint']}"
                mean_queries.setdefault(place, []).append(each["queries"])
        return {
            "texts": len(self.numbers),
            "classes": len(self.task.classes),
            "truncated": sum(each["truncated"] for each in attacks),
            "mean_queries": {place: sum(each) / len(each) for place, each in mean_queries.items()},
        }

    def page(self, rows: Sequence[dict[str, Any]], records: Mapping[str, Sequence[dict[str, Any]]]) -> Page:
        return page(rows, records, self.extra(records), list(self.encoders), self.options.task)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(ZeroShotText, ZeroShotTextOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
