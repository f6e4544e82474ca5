"""Text-to-image retrieval under attack: recall@1, 5 and 10 of captions among images, and targeted retrieval.

Paper: section 4, retrieval: 1,000 images, Charmer with k=2 and n=10, three target captions. Three attackers: one moves
the caption away from its clean embedding ("drift"), one knows the images and lifts the best wrong one over the right
one ("margin"), one moves the caption towards each target ("toward"). Images are embedded by one image tower, which no
finetuning of a text tower touches. Runs as `leaf-diffusion retrieve` and as `python eval/retrieval.py`.
"""

from __future__ import annotations

import base64
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from leaf_diffusion.attacks import Charmer
from leaf_diffusion.encoders.image_encoder import load_image_encoder
from leaf_diffusion.evaluation.experiment import Common, Experiment, Setting, Stage, load_encoders, run
from leaf_diffusion.evaluation.t2i.attack import attack_row
from leaf_diffusion.evaluation.t2i.plan import content_id
from leaf_diffusion.evaluation.tasks.ranks import TOP, Goal, clean_values, ranked, similarities, values
from leaf_diffusion.evaluation.tasks.retrieval import file_gallery, world_gallery
from leaf_diffusion.metrics.retrieval import ranks
from leaf_diffusion.reports.metrics import CUTS
from leaf_diffusion.reports.pages.experiment import Page
from leaf_diffusion.reports.pages.retrieval import SHOWN, page, shown_search
from leaf_diffusion.runs import RunStore
from leaf_diffusion.runs.store import image_name
from leaf_diffusion.scoring.objectives import Drift, Margin, Objective, Toward
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import constraint_from_name

THUMBNAIL = 208


@dataclass(frozen=True)
class RetrievalOptions(Common):
    """Text-to-image retrieval, clean and under untargeted and targeted attacks."""

    captions: Path | None = None
    """A file that says which image a caption belongs to: COCO captions, the Karpathy split, Flickr30k, JSONL with
    "image" and "caption". Default: scenes of the world, with captions that name all there is."""
    images: Path | None = None
    """The folder of the file's images."""
    caption_column: str | None = None
    split: str | None = None
    """Only captions of this split ("test" of the Karpathy split)."""
    image_encoder: str = "world:original"
    """The tower that embeds the images: a CLIP's folder, Hub id or openclip:ARCHITECTURE/PRETRAINED."""
    gallery: int = 1000
    """Images that each caption is ranked against, at most."""
    limit: int | None = None
    """Captions that are attacked. Default: 48 of the world's, all of a file's; the targets are not among them."""
    targets: int = 3
    """Target captions of the attack "toward"."""
    goals: tuple[Goal, ...] = ("drift", "margin", "toward")
    toward: Literal["captions", "images"] = "captions"
    """What the targeted attack moves the caption's embedding to: that of the target caption, or of its image."""
    k: tuple[int, ...] = (1, 2)
    n_positions: int = 10
    constraint: Literal["no-new-words", "published", "none"] = "no-new-words"
    seed: int = 0
    """Which scenes are drawn, and which captions are attacked or are targets."""

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1 or len(set(self.k)) < len(self.k):
            raise ValueError(f"--k needs different numbers of edits, each at least 1, got {self.k}")
        for name in ("gallery", "limit", "targets", "n_positions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if not self.goals or len(set(self.goals)) < len(self.goals):
            raise ValueError(f"--goals names different goals, at least one, got {self.goals}")
        if (self.captions is None) != (self.images is None):
            raise ValueError("--captions and --images belong together: the file, and the folder of its images")


class Retrieval(Experiment[RetrievalOptions]):
    name = "retrieve"

    def __init__(self, options: RetrievalOptions) -> None:
        super().__init__(options)
        if options.captions is None or options.images is None:
            self.gallery = world_gallery(options.gallery, options.seed)
        else:
            self.gallery = file_gallery(options.captions, options.images, column=options.caption_column,
                                        split=options.split, n=options.gallery)  # fmt: skip
        n = len(self.gallery.captions)
        if n <= max(CUTS) + options.targets:
            raise ValueError(f"{n} images are too few for recall@{max(CUTS)} and {options.targets} targets")
        drawn = random.Random(f"retrieval {options.seed}").sample(range(n), n)
        self.targets, rest = drawn[: options.targets], drawn[options.targets :]
        self.queries = rest[: options.limit or (48 if options.captions is None else n)]
        self.encoders = load_encoders(options.encoders, options.device)
        self.images = load_image_encoder(options.image_encoder, device=options.device)
        width = self.images.embed(self.images.prepare([self.gallery.load(0)])).shape[1]
        for label, encoder in self.encoders.items():  # a misfit shows here, before anything is made
            encoder_width = encoder.features(encoder.tokenize(encoder.preprocess([self.gallery.captions[0]]))).shape[1]
            if encoder_width != width:
                raise ValueError(
                    f"--encoders {label} has {encoder_width} features a caption, --image-encoder "
                    f"{options.image_encoder} {width} an image: they are of different CLIPs"
                )
        self._embedded: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        prints = {label: encoder.fingerprint for label, encoder in self.encoders.items()}
        pairs = [list(pair) for pair in zip(self.gallery.captions, self.gallery.names, strict=True)]
        return {
            "fingerprints": prints,
            "image_fingerprint": self.images.fingerprint,
            "texts": pairs,
            "query_numbers": self.queries,
            "target_numbers": self.targets,
        }

    def stages(self) -> Sequence[Stage]:
        def unit(kind: str, *place: object) -> str:
            return content_id(unit=f"retrieval {kind}", place=place)

        pairs = [(label, query) for label in self.encoders for query in self.queries]
        everything = [(label, number) for label in self.encoders for number in range(len(self.gallery.captions))]
        steps = {unit("step", *pair): pair for pair in pairs}
        shown = [
            (label, query, goal, place)
            for query in self.queries[:SHOWN]
            for label in self.encoders
            for goal in ("clean", *self.options.goals)
            for place in range(TOP)
        ]
        alone = [("", number, "", 0) for number in (*self.queries[:SHOWN], *self.targets)]
        return [
            Stage("gallery", {unit("image", name): i for i, name in enumerate(self.gallery.names)}, self.embed, 64),
            Stage("clean", {unit("clean", *pair): pair for pair in everything}, self.rank_clean, 128),
            Stage("attacks", steps, self.attack),
            Stage("ranks", steps, self.rank, 32),
            Stage("shown", {unit("shown", *each): each for each in (*alone, *shown)}, self.show, 64),
        ]

    def embed(self, store: RunStore, numbers: Sequence[int]) -> list[dict[str, Any]]:
        pixels = self.images.prepare([self.gallery.load(i) for i in numbers])
        features = self.images.embed(pixels).cpu().numpy().astype("<f4")
        packed = [base64.b64encode(row.tobytes()).decode() for row in features]
        return [{"number": i, "features": each} for i, each in zip(numbers, packed, strict=True)]

    def embedded(self, store: RunStore) -> Tensor:
        """Image features [images, d] of length 1, in the gallery's order."""
        if self._embedded is None:
            packed = {record["number"]: record["features"] for record in store.records("gallery")}
            rows = [np.frombuffer(base64.b64decode(packed[i]), "<f4") for i in range(len(packed))]
            self._embedded = normalize(torch.from_numpy(np.stack(rows)), dim=-1)
        return self._embedded

    def attack(self, store: RunStore, units: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        """Every goal's attack on each caption, on the encoder that it is for."""
        found: dict[tuple[str, int], list[dict[str, Any]]] = {pair: [] for pair in units}
        constraint = constraint_from_name(self.options.constraint)
        for label in dict.fromkeys(label for label, _ in units):
            queries = [query for other, query in units if other == label]
            texts = [self.gallery.captions[query] for query in queries]
            for goal, target, objective in self.objectives(store, queries):
                attack, scorer = Charmer(n_positions=self.options.n_positions), Scorer(self.encoders[label], objective)
                for k, results in attack.path(texts, scorer, self.options.k, constraint=constraint).items():
                    for query, result in zip(queries, results, strict=True):
                        row = attack_row(result, label, k, attack.name, self.options.constraint)
                        found[label, query].append({"goal": goal, "target": target} | row)
        return [{"encoder": label, "number": query, "attacked": found[label, query]} for label, query in units]

    def objectives(self, store: RunStore, queries: Sequence[int]) -> list[tuple[Goal, int | None, Objective]]:
        images = self.embedded(store)
        made: list[tuple[Goal, int | None, Objective]] = []
        for goal in self.options.goals:
            if goal == "drift":
                made.append((goal, None, Drift("cosine")))
            elif goal == "margin":
                made.append((goal, None, Margin(images, queries)))
            else:
                made += [(goal, target, self._towards(images, target, len(queries))) for target in self.targets]
        return made

    def _towards(self, images: Tensor, target: int, n: int) -> Toward:
        if self.options.toward == "images":
            return Toward(images[target].expand(n, -1))
        return Toward([self.gallery.captions[target]] * n)

    def rank_clean(self, store: RunStore, units: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        """Where the right image stands for every caption of the gallery: costs little, and its intervals are narrow."""
        found: dict[tuple[str, int], int] = {}
        for label in dict.fromkeys(label for label, _ in units):
            numbers = [number for other, number in units if other == label]
            texts = [self.gallery.captions[number] for number in numbers]
            similarity = similarities(self.encoders[label], self.embedded(store), texts)
            for number, rank in zip(numbers, ranks(similarity, numbers).tolist(), strict=True):
                found[label, number] = rank
        return [{"encoder": label, "number": number, "rank": found[label, number]} for label, number in units]

    def rank(self, store: RunStore, units: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        """Where the right image and the targets stand: for the clean caption, for each attack on the encoder itself,
        and for those found on the first encoder."""
        attacks = {(record["encoder"], record["number"]): record["attacked"] for record in store.records("attacks")}
        first, records = next(iter(self.encoders)), []
        for label, query in units:
            asked: list[dict[str, Any]] = [{"protocol": "clean", "perturbed": self.gallery.captions[query]}]
            asked += [{"protocol": "adaptive"} | row for row in attacks[label, query]]
            asked += [{"protocol": "transfer"} | row for row in attacks[first, query]]
            texts = [row["perturbed"] for row in asked]
            places = ranked(self.encoders[label], self.embedded(store), query, self.targets, texts)
            kept = ("protocol", "perturbed", "source", "attack", "constraint", "k", "goal", "target")
            rows = [
                {name: row[name] for name in kept if name in row} | found
                for row, found in zip(asked, places, strict=True)
            ]
            records.append(
                {"encoder": label, "number": query, "caption": self.gallery.captions[query], "searches": rows}
            )
        return records

    def show(self, store: RunStore, units: Sequence[tuple[str, int, str, int]]) -> list[dict[str, Any]]:
        """The images of the page: the queries' and the targets' own, and what was found first."""
        by_pair = {(record["encoder"], record["number"]): record["searches"] for record in store.records("ranks")}
        records = []
        for label, query, goal, place in units:
            found = query if not label else shown_search(by_pair[label, query], goal, self.options.k)["top"][place]
            image = self.gallery.load(found)
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            name = image_name(content_id(shown=[label, query, goal, place]))
            path = store.save_image(name, image)
            records.append({"encoder": label, "query": query, "goal": goal, "found": found, "image": path})
        return records

    def values(self, records: Mapping[str, Sequence[dict[str, Any]]]) -> Mapping[Setting, Mapping[str, float]]:
        return clean_values(records["clean"]) | values(records["ranks"], self.targets)

    def extra(self, records: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
        rows = [row for record in records["attacks"] for row in record["attacked"]]
        return {
            "images": len(self.gallery.captions),
            "queries": len(self.queries),
            "target_captions": [self.gallery.captions[target] for target in self.targets],
            "captions_of_several_images": self.gallery.shared,
            "attacked": len(rows),
            "unchanged": sum(row["perturbed"] == row["prompt"] for row in rows),
            "truncated": sum(row["truncated"] for row in rows),
        }

    def page(self, rows: Sequence[dict[str, Any]], records: Mapping[str, Sequence[dict[str, Any]]]) -> Page:
        return page(rows, records, self.extra(records), list(self.encoders), self.options.goals, self.options.k,
                    self.folder)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(Retrieval, RetrievalOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
