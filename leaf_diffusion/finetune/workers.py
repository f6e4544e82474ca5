"""Processes that make an attack's candidates while this one, which has the tower, scores them and learns from them."""

import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from leaf_diffusion.attacks import Attack
from leaf_diffusion.attacks.base import Outcome, Problem
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.scoring.plain import PlainScore
from leaf_diffusion.text import Candidates, Constraint
from leaf_diffusion.tokens.token_rows import TokenRows

Batches = Callable[[int], tuple[list[str], int]]
"""The captions of a batch by its number, and the seed of its attack."""


class Asked(NamedTuple):
    """Candidates whose scores a worker waits for; `best` as in `BoundScore`."""

    rows: TokenRows
    best: int


class AttackWorkers:
    """`n` processes, each of which runs `attack` on its share of a batch: it draws, holds candidates against the constraint,
    reads their tokens and chooses, while the scores are computed here.

    What all shares ask for is scored at once, as an attack on the whole batch asks for it, so the texts that are found
    are the same. As soon as a batch is attacked the first candidates of the next one are made: they depend on no weights.
    The processes are forked (ValueError where the system cannot), never touch the device, and end with this object.
    """

    def __init__(
        self,
        n: int,
        attack: Attack,
        encoder: TextEncoder,
        batches: Batches,
        last: int,
        *,
        k: int,
        constraint: Constraint | None,
    ) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise ValueError(f"workers={n} need a system that forks processes: workers=0")
        context = multiprocessing.get_context("fork")
        self._batches, self._last, self._begun = batches, last, -1
        self._pipes, self._sizes = list[Connection](), [0] * n
        processes = list[BaseProcess]()
        for _ in range(n):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            given = (theirs, list(self._pipes), attack, encoder, k, constraint)
            processes.append(context.Process(target=_work, args=given, daemon=True))
            processes[-1].start()
            theirs.close()
        self.close = weakref.finalize(self, _end, self._pipes, processes)

    def __call__(self, number: int, score: PlainScore) -> list[str]:
        """The attacked captions of a batch, which `score` is bound to. RuntimeError where a worker fails."""
        if self._begun != number:
            self._begin(number)
        found, clean = dict[int, list[Outcome]](), list[float]()
        while len(found) < len(self._pipes):
            asked = dict[int, Asked]()
            for i, pipe in enumerate(self._pipes):
                while i not in found and i not in asked:
                    message = _receive(pipe)
                    if isinstance(message, Asked):
                        asked[i] = message
                    elif isinstance(message, list):
                        found[i] = message
                    else:
                        clean = clean or score.clean()
                        first = sum(self._sizes[:i])
                        pipe.send(clean[first : first + self._sizes[i]])
            if asked:
                self._answer(asked, score)
        if number + 1 < self._last:
            self._begin(number + 1)
        return [str(text) for i in sorted(found) for text in found[i]]

    def _begin(self, number: int) -> None:
        captions, seed = self._batches(number)
        bounds = np.linspace(0, len(captions), len(self._pipes) + 1).astype(int).tolist()
        self._sizes, self._begun = np.diff(bounds).tolist(), number
        for pipe, low, high in zip(self._pipes, bounds, bounds[1:], strict=False):
            pipe.send((captions[low:high], seed))

    def _answer(self, asked: dict[int, Asked], score: PlainScore) -> None:
        """Send the scores that are asked for, all computed together."""
        nothing = [TokenRows.of([[]] * size) for size in self._sizes]
        rows = TokenRows.joined([asked[i].rows if i in asked else none for i, none in enumerate(nothing)])
        scores = score.score_rows(rows, best=max(each.best for each in asked.values()))
        flat, end = torch.cat([torch.empty(0), *scores]).numpy(), 0
        for i, each in sorted(asked.items()):
            count = int(each.rows.counts.sum())
            self._pipes[i].send(flat[end : end + count])
            end += count


def _receive(pipe: Connection) -> Asked | list[Outcome] | None:
    """What a worker says: what it asks for, what it has found, or (None) that it wants the clean scores."""
    try:
        message = pipe.recv()
    except EOFError:
        raise RuntimeError("a process that makes candidates has ended (killed, out of memory?): continue") from None
    if isinstance(message, Exception):
        raise RuntimeError(f"a process that makes candidates failed: {message!r}") from message
    return message


def _end(pipes: list[Connection], processes: list[BaseProcess]) -> None:
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.terminate()
        process.join()


class _Score:
    """A `BoundScore` whose candidates are read here and scored where the tower is. Its goals have no end."""

    def __init__(self, pipe: Connection, encoder: TextEncoder, n: int) -> None:
        self._pipe, self._encoder = pipe, encoder
        self.queries = [0] * n

    def __call__(self, candidates: Sequence[Candidates], *, best: int = 1) -> list[Tensor]:
        rows = self._encoder.read_candidates(candidates)
        self._pipe.send(Asked(rows, best))
        scores = torch.from_numpy(self._pipe.recv())
        ends = np.cumsum(rows.counts).tolist()
        return [scores[end - count : end] for count, end in zip(rows.counts.tolist(), ends, strict=True)]

    def clean(self) -> list[float]:
        self._pipe.send(None)
        clean: list[float] = self._pipe.recv()
        return clean

    def solved(self, i: int, score: float) -> bool:
        return False

    def gradient(self, token_rows: Sequence[Sequence[int]]) -> list[Tensor]:
        raise NotImplementedError("workers have no tower, and so no gradient")


def _work(
    pipe: Connection,
    theirs: list[Connection],
    attack: Attack,
    encoder: TextEncoder,
    k: int,
    constraint: Constraint | None,
) -> None:
    """A worker's life: it ends with its pipe."""
    for each in theirs:  # held open here, they would hide the end of the process that has the tower
        each.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not outlive a fork
    torch.set_num_threads(1)
    try:
        while True:
            prompts, seed = pipe.recv()
            score = _Score(pipe, encoder, len(prompts))
            pipe.send(attack.run(Problem.of(prompts, score, k, constraint=constraint, seed=seed)))
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        pipe.send(error)
