"""`leaf-diffusion retrieve`: text-to-image retrieval under attack, recall@1, 5 and 10, and targeted retrieval.

Paper: section 4, retrieval: 1,000 images, Charmer (k=2, n=10), three target captions. Attackers move a caption off its clean
embedding ("drift"), lift the best wrong image over the right one ("margin") or near each target ("toward").
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import copy
from typing import Self

from torch import Tensor

from leaf_diffusion.encoders.image_encoder import load_image_encoder
from leaf_diffusion.evaluation.experiment import Experiment, Records, Stage, load_encoders, run
from leaf_diffusion.evaluation.options import check_edits
from leaf_diffusion.evaluation.tasks import units
from leaf_diffusion.evaluation.tasks.goals import Goals, attack_captions
from leaf_diffusion.evaluation.tasks.ranks import clean_ranks, packed, rank_attacked, retrieval_values, unpacked
from leaf_diffusion.evaluation.tasks.retrieval import RetrievalOptions, check_space, counts, show_images, shown_units
from leaf_diffusion.reports.pages.experiment import Page
from leaf_diffusion.reports.pages.retrieval import retrieval_page
from leaf_diffusion.runs import RunStore
from leaf_diffusion.runs.experiment_records import AttackedCaptions, CleanRank, Embedded, Ranked, Shown, typed
from leaf_diffusion.runs.results import ResultRow


class Retrieval(Experiment[RetrievalOptions]):
    name = "retrieve"

    def __init__(self, options: RetrievalOptions) -> None:
        super().__init__(options)
        self.gallery = options.load_gallery()
        self.targets, self.queries = options.drawn(len(self.gallery.captions))
        check_edits(options.k, options.attack, [self.gallery.captions[query] for query in self.queries])
        self.encoders = load_encoders(options.encoders, options.device)
        self.images = load_image_encoder(options.image_encoder, device=options.device)
        check_space(self.images, self.encoders, self.gallery, f"--image-encoder {options.image_encoder}")
        self._embedded: Tensor | None = None

    def sample(self) -> Self:
        few = copy(self)
        few.queries = self.queries[:1]
        return few

    def settings(self) -> dict[str, object]:
        pairs = [list(pair) for pair in zip(self.gallery.captions, self.gallery.names, strict=True)]
        return {"fingerprints": units.fingerprints(self.encoders), "image_fingerprint": self.images.fingerprint,
                "texts": pairs, "query_numbers": self.queries, "target_numbers": self.targets}  # fmt: skip

    def stages(self) -> Sequence[Stage]:
        everything, queries = ({i: i for i in some} for some in (range(len(self.gallery.captions)), self.queries))
        shown = shown_units(self.encoders, self.queries, self.targets, self.options.goals)
        return [
            units.single("gallery", units.numbered(self.gallery.names, everything), self.embed, 64),
            units.stage("clean", self.encoders, everything, self.rank_clean, 128),
            units.stage("attacks", self.encoders, queries, self.attack),
            units.stage("ranks", self.encoders, queries, self.rank, 32),
            units.single("shown", shown, self.show, 64, Shown),
        ]

    def embed(self, store: RunStore, numbers: Sequence[int]) -> list[Embedded]:
        return packed(numbers, self.images.embed(self.images.prepare([self.gallery.load(i) for i in numbers])))

    def embedded(self, store: RunStore) -> Tensor:
        """Image features [images, d] of length 1, in the gallery's order."""
        if self._embedded is None:
            self._embedded = unpacked(store.records("gallery", Embedded))
        return self._embedded

    def rank_clean(self, store: RunStore, label: str, numbers: Sequence[int]) -> list[CleanRank]:
        return clean_ranks(self.encoders[label], label, self.embedded(store), self.gallery.captions, numbers)

    def attack(self, store: RunStore, label: str, queries: Sequence[int]) -> list[AttackedCaptions]:
        options, by_image = self.options, self.options.toward == "images"
        goals = Goals(options.goals, self.embedded(store), self.gallery.captions, self.targets, by_image)
        return attack_captions(self.encoders[label], label, goals, queries, attack=options.attack, ks=options.k,
                               constraint=options.constraint, seed=options.seed)  # fmt: skip

    def rank(self, store: RunStore, label: str, queries: Sequence[int]) -> list[Ranked]:
        first, images, captions = next(iter(self.encoders)), self.embedded(store), self.gallery.captions
        return rank_attacked(store, self.encoders[label], label, images, captions, queries, self.targets, first)

    def show(self, store: RunStore, wanted: Sequence[Shown]) -> list[Shown]:
        return show_images(store, self.gallery, wanted, self.options.k)

    def clusters(self) -> dict[str, str]:
        return units.numbered_clusters(self.gallery.clusters)

    def values(self, records: Records) -> units.Noted:
        return retrieval_values(typed(CleanRank, records["clean"]), typed(Ranked, records["ranks"]), self.targets)

    def extra(self, records: Records) -> dict[str, object]:
        return counts(self.gallery, self.queries, self.targets, typed(AttackedCaptions, records["attacks"]))

    def page(self, rows: Sequence[ResultRow], records: Records) -> Page:
        ranked, shown = typed(Ranked, records["ranks"]), typed(Shown, records["shown"])
        goals, ks, labels = self.options.goals, self.options.k, list(self.encoders)
        return retrieval_page(rows, ranked, shown, self.extra(records), labels, goals, ks, self.folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    return run(Retrieval, RetrievalOptions, argv)


if __name__ == "__main__":
    sys.exit(main())
