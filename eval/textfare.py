"""The TextFARE loss, clean and attacked: how far an encoder's embedding lies from the original's clean one.

Paper: section 3, equation of TextFARE: || f_original(S) - f_encoder(S') ||^2 over S' within k character edits of S. The
attack maximises that very loss, on each encoder. Runs as `leaf-diffusion textfare` and as `python eval/textfare.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from leaf_diffusion.attacks import Attack, attack_from_name
from leaf_diffusion.encoders.base import Feature
from leaf_diffusion.evaluation.experiment import Common, Experiment, Setting, Stage, load_encoders, run
from leaf_diffusion.evaluation.prompts import Prompt, from_file, from_world
from leaf_diffusion.evaluation.t2i.attack import attack_row, find
from leaf_diffusion.evaluation.t2i.plan import content_id
from leaf_diffusion.reports.metrics import RELATIVE_TEXTFARE, TEXTFARE
from leaf_diffusion.reports.pages.experiment import Example, ExampleCell, Page, Section, curve, line_label, matrices
from leaf_diffusion.runs import RunStore
from leaf_diffusion.scoring.objectives import Drift
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import constraint_from_name
from leaf_diffusion.text.visible import isolated

SHOWN = 4
"""Prompts with examples on the page."""


@dataclass(frozen=True)
class TextFareOptions(Common):
    """The TextFARE loss of text encoders on clean prompts and under attacks that maximise it."""

    prompts: Path | None = None
    """Any file of texts that `leaf-diffusion evaluate` reads. Default: the world's own prompts."""
    prompt_column: str | None = None
    limit: int | None = None
    """Number of prompts. Default: 32 of the world's, all of a file's."""
    prompt_seed: int = 0
    attacks: tuple[Literal["charmer", "leaf", "exhaustive", "random-typos"], ...] = (
        "random-typos",
        "leaf",
        "charmer",
        "exhaustive",
    )
    k: tuple[int, ...] = (1,)
    """Numbers of character edits; exhaustive search is exact, for k=1 only."""
    n_positions: int = 20
    """Positions that Charmer keeps a round."""
    rho: int = 50
    """Slots and characters that the LEAF attack tries a round."""
    constraint: Literal["no-new-words", "published", "none"] = "no-new-words"
    seed: int = 0
    """Of the random attacks."""

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1 or len(set(self.k)) < len(self.k):
            raise ValueError(f"--k needs different numbers of edits, each at least 1, got {self.k}")
        if not self.attacks:
            raise ValueError("--attacks names at least one attack")


class TextFare(Experiment[TextFareOptions]):
    name = "textfare"

    def __init__(self, options: TextFareOptions) -> None:
        super().__init__(options)
        if options.prompts is None:
            self.prompts = from_world(options.limit or 32, options.prompt_seed)
        else:
            self.prompts = from_file(options.prompts, options.prompt_column)[: options.limit]
        self.encoders = load_encoders(options.encoders, options.device)
        self.anchor = next(iter(self.encoders.values()))
        projected = all(encoder.has_projection for encoder in self.encoders.values())
        self.feature: Feature = "projected" if projected else "pooled"
        for label, encoder in self.encoders.items():  # a misfit shows here, before anything is made
            try:
                self._objective().goals(encoder, [self.prompts[0].text])
            except ValueError as error:
                raise ValueError(f"--encoders {label}: {error}") from error

    def _objective(self) -> Drift:
        return Drift("l2", anchor=self.anchor, feature=self.feature)

    def _attacks(self) -> dict[str, tuple[Attack, tuple[int, ...]]]:
        params: dict[str, dict[str, int]] = {
            "charmer": {"n_positions": self.options.n_positions},
            "leaf": {"rho": self.options.rho},
        }
        made = {name: attack_from_name(name, **params.get(name, {})) for name in self.options.attacks}
        ks = {name: tuple(k for k in self.options.k if name != "exhaustive" or k == 1) for name in made}
        return {name: (attack, ks[name]) for name, attack in made.items() if ks[name]}

    def settings(self) -> dict[str, Any]:
        prints = {label: encoder.fingerprint for label, encoder in self.encoders.items()}
        return {"fingerprints": prints, "texts": [prompt.text for prompt in self.prompts], "feature": str(self.feature)}

    def stages(self) -> Sequence[Stage]:
        units = {
            content_id(unit="textfare", encoder=label, prompt_id=prompt.id): (label, prompt)
            for label in self.encoders
            for prompt in self.prompts
        }
        return [Stage("losses", units, self.measure)]

    def measure(self, store: RunStore, units: Sequence[tuple[str, Prompt]]) -> list[dict[str, Any]]:
        records = [{"encoder": label, "prompt_id": prompt.id, "attacked": list[Any]()} for label, prompt in units]
        for label in dict.fromkeys(label for label, _ in units):
            mine = [i for i, (other, _) in enumerate(units) if other == label]
            texts = [units[i][1].text for i in mine]
            scorer = Scorer(self.encoders[label], self._objective())
            norms = [goal.scale for goal in self._objective().goals(self.anchor, texts)]
            for i, clean, norm in zip(mine, scorer.bind(texts).clean(), norms, strict=True):
                records[i] |= {"prompt": units[i][1].text, "clean": clean, "norm": norm}
            constraint = constraint_from_name(self.options.constraint)
            for name, (attack, ks) in self._attacks().items():
                for k, results in find(attack, texts, scorer, ks, constraint, self.options.seed).items():
                    for i, result in zip(mine, results, strict=True):
                        records[i]["attacked"].append(attack_row(result, label, k, name, self.options.constraint))
        return records

    def values(self, records: Mapping[str, Sequence[dict[str, Any]]]) -> dict[Setting, dict[str, float]]:
        found: dict[Setting, dict[str, float]] = {}
        for record in records["losses"]:
            label, prompt = record["encoder"], record["prompt_id"]
            losses = {("clean", None, None, None, 0): record["clean"]}
            for row in record["attacked"]:
                losses["adaptive", label, row["attack"], row["constraint"], row["k"]] = row["score"]
            for place, loss in losses.items():
                found.setdefault(Setting(label, TEXTFARE.key, *place), {})[prompt] = loss
                found.setdefault(Setting(label, RELATIVE_TEXTFARE.key, *place), {})[prompt] = loss / record["norm"]
        return found

    def extra(self, records: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
        rows = [row for record in records["losses"] for row in record["attacked"]]
        unchanged = sum(row["perturbed"] == row["prompt"] for row in rows)
        return {"attacked": len(rows), "unchanged": unchanged, "truncated": sum(row["truncated"] for row in rows)}

    def page(self, rows: Sequence[dict[str, Any]], records: Mapping[str, Sequence[dict[str, Any]]]) -> Page:
        counts = self.extra(records)
        labels = list(self.encoders)
        examples = [
            Example(
                prompt.text,
                [
                    ExampleCell(record["encoder"], row["perturbed"], prompt.text,
                                note=f"{row['attack']}, k={row['k']}: loss {row['score']:.2f}, clean {record['clean']:.2f}")
                    for record in records["losses"] if record["prompt_id"] == prompt.id
                    for row in record["attacked"][-1:]
                ],
            )
            for prompt in self.prompts[:SHOWN]
        ]  # fmt: skip
        sections = [Section("Losses", "Each encoder is attacked on its own loss; the anchor is the first encoder's clean "
                            "embedding.", matrices(rows, [RELATIVE_TEXTFARE, TEXTFARE]), self._plots(rows)),
                    Section("Examples", "The last attack of the list, prompt by prompt.", examples=examples)]  # fmt: skip
        facts = {"prompts": str(len(self.prompts)), "constraint": self.options.constraint, "feature": str(self.feature)}
        note = (
            f"{counts['unchanged']} of {counts['attacked']} attacks found nothing better than the clean prompt, "
            f"{counts['truncated']} results are cut at the context length."
        )
        return Page("TextFARE loss, clean and attacked", self._headline(rows), facts, labels, sections, [note])

    def _plots(self, rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
        if len(self.options.k) < 2:
            return []
        attacks = dict.fromkeys(row["attack"] for row in rows if row["attack"])
        return [
            (name, curve([row for row in rows if row["attack"] in (None, name)], RELATIVE_TEXTFARE, list(self.encoders),
                         x=lambda row: float(row["k"]), xlabel="edited characters k", name=f"textfare-{name}"))
            for name in attacks
        ]  # fmt: skip

    def _headline(self, rows: Sequence[dict[str, Any]]) -> str:
        worst = [
            row for row in rows if row["metric"] == RELATIVE_TEXTFARE.key and row["attack"] == self.options.attacks[-1]
        ]
        means = [row for row in worst if row["baseline"] is None and row["k"] == min(self.options.k)]
        said = ", ".join(f"{isolated(row['encoder'])} {RELATIVE_TEXTFARE.show(row['mean'])}" for row in means)
        return f"Relative TextFARE loss under {line_label(means[0])}: {said}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(TextFare, TextFareOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
