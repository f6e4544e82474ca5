"""Exact images: what an encoder reads of every allowed edit of a prompt, drawn and judged until one image is wrong."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from statistics import fmean
from time import monotonic
from typing import Any

from PIL import Image

from leaf_diffusion.evaluation.encoders import Loaded, with_encoder
from leaf_diffusion.evaluation.prompts import Prompt
from leaf_diffusion.evaluation.results import Setting
from leaf_diffusion.evaluation.t2i.generate import draw
from leaf_diffusion.evaluation.t2i.judges import Judges
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.metrics import clip_score_from_features
from leaf_diffusion.reports.metrics import EXACT, EXACT_AT_MOST, ROWS, UNDONE
from leaf_diffusion.runs import RunStore, image_name, png_ok
from leaf_diffusion.runs.experiment_records import RightSoFar, SettledPrompt
from leaf_diffusion.scoring.objectives import Drift
from leaf_diffusion.text import Candidates, Constraint, neighbours
from leaf_diffusion.text.visible import isolated
from leaf_diffusion.world.figures import noise_seed

FIRST = 8
"""Images of a prompt drawn at first: most prompts that fall do so here. Then twice as many each time, up to a batch."""
READ = 3
"""Prompts that are read for an estimate."""
KEPT_EVERY = 256
"""Images after which it is recorded that all so far are right, so that a killed run goes on from there."""
PROGRESS = "right-so-far"
"""The kind of these records."""
Unit = tuple[str, Prompt, int]
"""Encoder, prompt, number of the noise."""


@dataclass(frozen=True)
class ReadEdits:
    """The allowed single edits of a prompt as an encoder reads them: `distinct` has one edit for each reading that is not the
    clean prompt's; `undone` of the `edits` give that one."""

    edits: int
    undone: int
    distinct: Candidates


def read_edits(loaded: Loaded, text: str, constraint: Constraint | None) -> ReadEdits:
    """Read every allowed edit. Two edits are one reading where the token rows of the (defended) texts are equal in every text
    encoder."""
    edits = neighbours(text)
    if constraint is not None:
        edits = edits[constraint.allows(text, text, edits)]

    def readings(listed: Candidates) -> Iterator[Hashable]:
        columns: list[Sequence[Hashable]] = [tower.tokenize_candidates(listed) for tower in loaded.towers]
        return zip(*columns, strict=True)

    (clean,) = readings(Candidates.from_texts([text]))
    first: dict[Hashable, int] = {}
    undone = 0
    for i, reading in enumerate(readings(edits)):
        undone += reading == clean
        first.setdefault(reading, i)
    first.pop(clean, None)
    return ReadEdits(len(edits), undone, edits[list(first.values())])


def batches(n: int, size: int) -> Iterator[range]:
    """Which of `n` images are drawn together: `FIRST`, then twice as many each time, `size` at most."""
    start, step = 0, min(FIRST, size)
    while start < n:
        yield range(start, min(n, start + step))
        start, step = start + step, min(size, 2 * step)


class ExactDrawing:
    """Settles prompts: draws the clean image and one of each distinct reading from the prompt's noise, those that drift most
    first, and judges them, batch by batch until one holds a wrong image.

    A verdict is the judge's on the image of that batch: another batch size moves features by about 1e-6, and so could turn
    one that is on the edge. most_rows: readings of a prompt that are drawn at most; where they are all right and there are
    more, the prompt is not decided.
    """

    def __init__(self, setup: Setup, judges: Judges, *, least_score: float | None, most_rows: int | None) -> None:
        self.setup, self.judges, self.least_score, self.most_rows = setup, judges, least_score, most_rows
        self._pipelines: dict[str, Any] = {}
        self._read = lru_cache(maxsize=8)(self._read_as)  # encoders of one tokenizer and defence read alike

    def __call__(self, store: RunStore, units: Sequence[Unit]) -> list[SettledPrompt]:
        """The outcome of each unit; its clean image and the first wrong one are kept in the run."""
        return [self._settle(store, *unit) for unit in units]

    def read(self, label: str, prompt: Prompt) -> ReadEdits:
        """The edits of a prompt as an encoder reads them."""
        return self._read(prompt.text, tuple(tower.tokenization for tower in self.setup.encoders[label].towers))

    def estimate(self) -> str:
        """A sentence on what is drawn at most, by a few prompts that are read and one batch that is drawn."""
        setup, rows = self.setup, dict[str, float]()
        some = setup.prompts[:: -(-len(setup.prompts) // READ)]
        for label in setup.encoders:
            counts = [len(self.read(label, prompt).distinct) for prompt in some]
            rows[label] = fmean(min(n, self.most_rows or n) for n in counts)
        size, started = setup.options.at_once(setup.options.batch_size), monotonic()
        self._draw(next(iter(setup.encoders)), [some[0].text] * size, noise_seed(some[0].id, 0))
        rate = size / (monotonic() - started)
        images = round(sum(1 + n for n in rows.values()) * len(setup.prompts) * setup.options.seeds)
        each = ", ".join(f"{isolated(label)} {n:,.0f}" for label, n in rows.items())
        return (
            f"readings to draw a prompt (mean of {len(some)}): {each}; {images:,} images if all of them were right, "
            f"{timedelta(seconds=round(images / rate))} at {rate:.2f} images a second (measured). A prompt is settled at its "
            "first wrong image; the times below are those of prompts that fall at once"
        )

    def right(self, prompt: Prompt, images: Sequence[Image.Image]) -> list[bool]:
        """Which images are right: by the scene judge, or by their CLIPScore with the clean prompt."""
        if self.least_score is None:
            found: list[bool] = self.judges.scenes.correct(images, [prompt.scene] * len(images))
            return found
        assert self.judges.clip is not None
        caption = self.judges.clip.encode_text([prompt.text])[0]
        features = self.judges.clip.encode_image(images)
        return [clip_score_from_features(each, caption) >= self.least_score for each in features]

    def _read_as(self, text: str, tokenization: Hashable) -> ReadEdits:
        loaded = next(each for each in self.setup.encoders.values()
                      if tuple(tower.tokenization for tower in each.towers) == tokenization)  # fmt: skip
        return read_edits(loaded, text, self.setup.options.rule())

    def _by_drift(self, loaded: Loaded, text: str, edits: Candidates) -> list[str]:
        """The edits, those first that move the encoder's embedding most (squared L2 of what the attacks look at)."""
        if not len(edits):
            return []
        scores = loaded.scorer(Drift("l2", feature=self.setup.feature), "fp32").bind([text])([edits])[0]
        return [edits.text(i) for i in scores.argsort(descending=True, stable=True).tolist()]

    def _draw(self, label: str, given: Sequence[str], seed: int) -> list[Image.Image]:
        if label not in self._pipelines:
            self._pipelines[label] = with_encoder(self.setup.pipeline, self.setup.encoders[label])
        return draw(self._pipelines[label], given, [seed] * len(given), self.setup)

    def _settle(self, store: RunStore, label: str, prompt: Prompt, index: int) -> SettledPrompt:
        loaded, options, found = self.setup.encoders[label], self.setup.options, self.read(label, prompt)
        ordered = [prompt.text, *self._by_drift(loaded, prompt.text, found.distinct)]
        texts = ordered if self.most_rows is None else ordered[: self.most_rows + 1]
        given = loaded.encoder.preprocess(texts)
        name = f"{label} {prompt.id} {index}"
        images, clean, wrong, place = [image_name(f"{name} clean")], True, None, 0
        so_far = self._right_so_far(store, name) if png_ok(store.folder / images[0]) else 0
        drawn = kept = so_far
        for part in batches(len(texts), options.at_once(options.batch_size)):
            if part.stop <= so_far:
                continue
            shown = self._draw(label, [given[i] for i in part], noise_seed(prompt.id, index))
            verdicts, drawn = self.right(prompt, shown), part.stop
            if part.start == 0:
                store.save_image(images[0], shown[0])
                clean = verdicts[0]
            place = next((i for i in part if i and not verdicts[i - part.start]), 0)
            if place:
                wrong = texts[place]
                images.append(store.save_image(image_name(f"{name} wrong"), shown[place - part.start]))
            if wrong is not None or (not clean and drawn > 1):
                break
            if drawn >= kept + KEPT_EVERY:
                kept = drawn
                store.append(PROGRESS, RightSoFar(id=f"{name} {drawn}", unit=name, drawn=drawn))
        fell = wrong is not None or not clean
        return SettledPrompt(
            encoder=label, prompt_id=prompt.id, prompt=prompt.text, seed_index=index,
            edits=found.edits, undone=found.undone, rows=len(found.distinct), drawn=drawn, right=clean,
            held=False if fell else None if len(texts) < len(ordered) else True,
            place=place, wrong=wrong, given=given[place], images=images,
        )  # fmt: skip

    def _right_so_far(self, store: RunStore, name: str) -> int:
        found = store.records(PROGRESS, RightSoFar)
        return max((each.drawn for each in found if each.unit == name), default=0)


def exact_values(records: Sequence[SettledPrompt], constraint: str, judged: str) -> dict[Setting, dict[str, float]]:
    """Values by setting and prompt, means over noises. judged: the metric of single images, clean and of the largest drift."""
    found: dict[Setting, dict[str, list[float]]] = {}
    undecided = any(record.held is None for record in records)
    for record in records:
        label, seeds = record.encoder, 1 + max(each.seed_index for each in records)
        every = ("adaptive", label, "every edit", constraint, 1)
        values = {
            Setting(label, EXACT.key, *every, seeds=seeds, exact=not undecided): record.held is True,
            Setting(label, judged, seeds=seeds): record.right,
            Setting(label, judged, "adaptive", label, "exhaustive", constraint, 1, seeds=seeds): record.worst_right,
            Setting(label, UNDONE.key, *every, seeds=seeds, compared=False): record.undone / max(1, record.edits),
            Setting(label, ROWS.key, *every, seeds=seeds, compared=False): record.rows,
        }
        if undecided:
            values[Setting(label, EXACT_AT_MOST.key, *every, seeds=seeds, compared=False)] = record.held is not False
        for setting, value in values.items():
            found.setdefault(setting, {}).setdefault(record.prompt_id, []).append(float(value))
    return {setting: {unit: fmean(values) for unit, values in mine.items()} for setting, mine in found.items()}
