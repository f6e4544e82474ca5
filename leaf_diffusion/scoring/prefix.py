"""The scores of the prefix engine: candidates as arrays from their tokens to their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.decoder import DecoderTextEncoder
from leaf_diffusion.scoring.attention import on_device
from leaf_diffusion.scoring.decoder_forest import DecoderForest
from leaf_diffusion.scoring.forest import distinct
from leaf_diffusion.scoring.objectives import Objective
from leaf_diffusion.scoring.plain import PlainScore, Precision, one_each
from leaf_diffusion.scoring.prefix_forest import PrefixForest, autocast_dtype, half_dtype, screening_dtype
from leaf_diffusion.text import DELETE, Candidates
from leaf_diffusion.tokens.token_rows import Ints, Row, TokenRows

Fetch = Callable[[], Tensor]
"""Waits for scores that were started: one for each candidate, on the CPU."""
SCREENED = 48
"""Candidates of a prompt that screening scores again in full, at most; a quarter of few. Where a caller goes on with several
best ones, a quarter more than these at least."""
TOGETHER = 16_384
"""Candidates that are tokenized before their scores are started."""
AT_ONCE = 1 << 20
"""Numbers of features that are compared with their prompts' vectors at once."""


class PrefixScore(PlainScore):
    """`PlainScore` on the prefix forest of the tower as it was when bound. Raises UnsupportedTowerError."""

    def __init__(
        self,
        encoder: TextEncoder,
        objective: Objective,
        prompts: list[str],
        precision: Precision = "fp32",
        max_bytes: int | None = None,
    ) -> None:
        super().__init__(encoder, objective, prompts, precision, max_bytes)
        device, own = encoder.device, encoder.dtype
        exact, rough = autocast_dtype(device) or own, own
        if own == torch.float32 and precision == "half":
            exact = half_dtype(device)
        elif own == torch.float32 and precision == "screen":
            rough = screening_dtype(device)
        if rough == torch.int8 and isinstance(encoder, DecoderTextEncoder):
            rough = own
        self._exact = _forest(encoder, exact)
        self._rough = _forest(encoder, rough) if rough != own else None
        # where all goals compare with a vector each, they are computed together
        pairs = {goal.compare for goal in self.goals}
        self._compare = pairs.pop() if len(pairs) == 1 else None
        vectors = [goal.vector for goal in self.goals if goal.vector is not None]
        self._vectors = torch.stack(vectors) if self._compare is not None else None

    def __call__(self, candidates: Sequence[Candidates], *, best: int = 1) -> list[Float[Tensor, " _len"]]:
        """Scores, float32 on the CPU, one tensor a prompt; an empty `Candidates` gives an empty one."""
        self.count(candidates)
        groups = _together([len(each) for each in candidates])
        return self._scored((self.encoder.read_candidates(candidates[some]) for some in groups), best)

    def rows(self, candidates: Sequence[Candidates]) -> TokenRows:
        """The candidates' token rows, counted as queries."""
        self.count(candidates)
        return self.encoder.read_candidates(candidates)

    def score_rows(self, asked: Sequence[Sequence[Row]], *, best: int = 1) -> list[Float[Tensor, " _len"]]:
        """Scores of token rows, one list a prompt: those of the same candidates, to the bit."""
        one_each("lists of token rows", len(asked), len(self.prompts))
        read = TokenRows.of(asked)
        return self._scored((read.of_prompts(some) for some in _together(read.counts.tolist())), best)

    def _scored(self, reads: Iterable[TokenRows], wanted: int) -> list[Tensor]:
        """Scores of what is read of some prompts after the other: a GPU computes them while the next ones are read."""
        started, first = list[tuple[TokenRows, Fetch]](), 0
        with torch.inference_mode():
            for read in reads:
                started.append((read, self._start(read, self._rough or self._exact, first)))
                first += len(read)
            scores = torch.cat([torch.empty(0), *(fetch() for _, fetch in started)])
            read = TokenRows.joined([read for read, _ in started])
            if not torch.isfinite(scores).all():
                self._name(read)
            return self._finish(read, scores, wanted)

    def clean(self) -> list[float]:
        """Scores of the untouched prompts; no queries are counted."""
        # as an edit that changes nothing a prompt is read from remembered chunks, which its candidates share
        read = self.encoder.read_candidates([Candidates.edits(prompt, [0], [DELETE]) for prompt in self.prompts])
        return [float(scores[0]) for scores in self.score_rows(read)]

    def _name(self, asked: Sequence[Sequence[Row]]) -> None:
        """ValueError that names the text whose features are no numbers: rows of one forest spoil each other, those of the
        plain engine do not."""
        super().score_rows(asked)

    def _start(self, read: TokenRows, forest: PrefixForest | DecoderForest, first: int = 0) -> Fetch:
        """Start the scores of the rows of the prompts from `first` on; each distinct row is computed once, whoever asks for
        it."""
        if not len(read.rows):
            return lambda: torch.empty(0)
        rows, order, place = distinct(forest.read(read.rows, self.feature))
        owner = read.owners[order] + first
        pieces, places = list[Tensor](), list[Ints]()
        for part, features in forest.batches(rows, self.feature, self.at_once(forest.bytes_per_node)):
            mine = slice(*np.searchsorted(place, [part.start, part.stop]).tolist())
            piece, behind = self._scores(features, place[mine] - part.start, owner[mine])
            pieces.append(piece)
            places.append(order[mine] if behind is None else order[mine][behind])

        def fetch() -> Tensor:
            # one transfer for everything: each would wait for the device
            flat = torch.cat(pieces).cpu()
            scores = torch.empty(len(read.rows))
            scores[torch.from_numpy(np.concatenate(places))] = flat
            return scores[torch.from_numpy(read.which)]

        return fetch

    def _scores(self, features: Tensor, index: Ints, owner: Ints) -> tuple[Tensor, Ints | None]:
        """Scores of `features[index]` for the prompts that own them, and the order in which they come if it is another one."""
        if self._compare is not None and self._vectors is not None:
            indices, owners = on_device([index, owner], features.device)
            alone = len(index) == len(features)  # then each row is asked for once
            found, some = list[Tensor](), max(1, AT_ONCE // features.shape[1])
            for low in range(0, len(index), some):
                at = slice(low, low + some)
                mine = features[at] if alone else features[indices[at]]
                found.append(self._compare(mine, self._vectors[owners[at]]).float())
            return torch.cat(found), None
        order = np.argsort(owner, kind="stable")
        owner = owner[order]
        firsts = np.flatnonzero(np.diff(owner, prepend=-1))
        chosen = on_device(np.split(index[order], firsts[1:]), features.device)
        found = [self.goals[i](features[at]).float() for i, at in zip(owner[firsts].tolist(), chosen, strict=True)]
        return torch.cat(found), order

    def _finish(self, read: TokenRows, scores: Tensor, wanted: int) -> list[Tensor]:
        """The scores of each prompt; screened ones with the best computed in full, those of all prompts together."""
        counts = read.counts.tolist()
        found = list(scores.split(counts))
        if self._rough is None:
            return self.checked(found)
        least = wanted + wanted // 4
        best = [each.topk(min(len(each), max(least, min(max(len(each) // 4, 12), SCREENED)))).indices for each in found]
        firsts = np.cumsum([0, *counts])
        chosen = np.concatenate([some.numpy() + first for some, first in zip(best, firsts.tolist(), strict=False)])
        again = TokenRows(
            read.rows[read.which[chosen]],
            np.arange(len(chosen)),
            np.array([len(some) for some in best], dtype=np.int64),
        )
        fine = self._start(again, self._exact)().split(again.counts.tolist())
        for mine, some, exact in zip(found, best, self.checked(fine), strict=True):
            if len(mine) > len(some):  # whatever was not looked at again stays behind what was
                mine.clamp_(max=float(exact.min()) - 1e-6 * abs(float(exact.min())))
            mine[some] = exact
        return self.checked(found)


def _forest(encoder: TextEncoder, dtype: torch.dtype) -> PrefixForest | DecoderForest:
    return DecoderForest(encoder, dtype) if isinstance(encoder, DecoderTextEncoder) else PrefixForest(encoder, dtype)


def _together(counts: Sequence[int]) -> Iterator[slice]:
    """Prompts in groups of few candidates, of which each has so many."""
    first, size = 0, 0
    for i, count in enumerate(counts):
        if i > first and size + count > TOGETHER:
            yield slice(first, i)
            first, size = i, 0
        size += count
    if counts:
        yield slice(first, len(counts))
