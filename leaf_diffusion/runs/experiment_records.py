"""What each experiment writes down of a unit of work: one class a kind of record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from pydantic import Field

from leaf_diffusion.runs.records import ImagePath, OfImage, OfImages, Record, Typed, as_model


class Measured(Record):
    """A unit of work; the frame sets its `id`."""

    id: str = ""


R = TypeVar("R", bound=Record)


def typed(model: type[R], records: Iterable[Record]) -> list[R]:
    """Records as they were read, with their types. Raises ValueError where one does not fit."""
    return [as_model(model, record) for record in records]


class AttackedText(Typed):
    """The outcome of a search: `perturbed` in place of `prompt`, its score and that of the prompt, the edits between them
    (start, end, replacement), and what was searched: `source` is the label of the encoder; `exact`: no text that the search
    may make has a higher score."""

    prompt: str
    perturbed: str
    score: float
    clean_score: float
    distance: int
    queries: int
    success: bool | None
    truncated: bool
    source: str
    k: int
    attack: str
    constraint: str
    edits: list[list[int | str]]
    exact: bool = False


class Losses(Measured):
    """textfare: the loss of a prompt, clean and attacked; `norm` is the squared norm of the anchor's clean embedding."""

    encoder: str
    prompt_id: str
    prompt: str
    clean: float
    norm: float
    attacked: list[AttackedText]


class Inverted(Measured):
    """invert: the text found for a caption's embedding, and how near it is; bleu is None without sacrebleu."""

    encoder: str
    prompt: str
    found: str
    tokens: list[int]
    truncated: bool
    step: int
    cosine: float
    word_accuracy: float
    token_overlap: float
    token_accuracy: float
    bleu: float | None = None


class Trained(Measured):
    """ablate: a finetuned encoder, in `folder` of the run."""

    label: str
    folder: str
    fingerprint: str


class AttackedUnderRecipe(Measured):
    """ablate: whether a text was classified right, whether it `held` at each k, at which k that is `exact`, and the relative
    TextFARE losses."""

    encoder: str
    number: int
    right: bool
    held: dict[str, bool]
    clean_loss: float
    loss: float
    exact: list[int] = Field(default_factory=list)


class AllEdits(Typed):
    """zero-shot-text: how many single edits the constraint allows, how many of them flip the label, and the worst one."""

    constraint: str
    edits: int
    flips: int
    worst: str


def search_label(attack: str, n_positions: int | None) -> str:
    """What results call a search."""
    return attack if n_positions is None else f"{attack}, n={n_positions}"


class SearchedText(Typed):
    """zero-shot-text: whether the label held under a search, and whether that is `exact`; `n_positions` are Charmer's."""

    attack: str
    n_positions: int | None
    k: int
    constraint: str
    perturbed: str
    queries: int
    held: bool
    truncated: bool
    exact: bool = False

    @property
    def label(self) -> str:
        return search_label(self.attack, self.n_positions)


class ClassifiedText(Measured):
    """zero-shot-text: a text, the class that the encoder `said`, and what flips it."""

    encoder: str
    number: int
    text: str
    right: bool
    said: str
    exact: list[AllEdits]
    attacks: list[SearchedText]


class MinimalPairs(Measured):
    """zero-shot-text: 1 or 0 for each minimal pair, colour and direction."""

    encoder: str
    told: list[float]


class AttackedImage(Typed):
    """zero-shot-image: the class that `encoder` said of an image attacked on `source`; eps of 255."""

    encoder: str
    source: str
    attack: str
    eps: float
    said: int


class ClassifiedImage(Measured, OfImages):
    """zero-shot-image: the classes that the encoders `said`, clean and attacked; `images` are shown on the page."""

    number: int
    name: str
    label: int
    said: dict[str, int]
    attacked: list[AttackedImage]


class PairImage(Measured):
    """both-domains: by pair of towers, whether an image was right, and whether it held under APGD."""

    number: int
    name: str
    right: dict[str, bool]
    held: dict[str, bool]


class PairText(AttackedText, Measured):
    """both-domains: whether a text was right for the pair of towers `row`, and whether it held under the attack."""

    row: str
    number: int
    right: bool
    held: bool


class Embedded(Measured):
    """retrieve: an image's features, float32 little-endian in base64."""

    number: int
    features: str


class CleanRank(Measured):
    """retrieve: where the right image stands for a caption, from 1."""

    encoder: str
    number: int
    rank: int


class AttackedCaption(AttackedText):
    """retrieve: `goal` is what the attacker wants, `target` the image that it wants to be found."""

    goal: str
    target: int | None


class AttackedCaptions(Measured):
    """retrieve: every attack on a caption."""

    encoder: str
    number: int
    attacked: list[AttackedCaption]


class Ranking(Typed):
    """Where images stand for a text: the right one and each target, from 1; the first ones found."""

    rank: int
    target_ranks: list[int]
    target_above: list[bool]
    top: list[int]


class Searched(Ranking):
    """retrieve: the ranking that a text gives under a protocol."""

    protocol: str
    perturbed: str
    source: str | None = None
    attack: str | None = None
    constraint: str | None = None
    k: int = 0
    goal: str | None = None
    target: int | None = None


class Ranked(Measured):
    """retrieve: the rankings of a caption, clean and attacked."""

    encoder: str
    number: int
    caption: str
    searches: list[Searched]


class Shown(Measured, OfImage):
    """retrieve: the image `found` at a `place` of a ranking, for the page; `encoder` is empty for the queries' and the
    targets' own."""

    encoder: str
    query: int
    goal: str
    place: int
    found: int = -1
    image: ImagePath = ""


class TrainedFile(Measured):
    """swap-cost: what was trained or translated, in `file` of the run; `encoder` is the one that it is for."""

    what: str
    encoder: str
    file: str


class SwapImage(Measured, OfImage):
    """swap-cost: the image of the prompt `number` of a condition; protocol "floor": from another noise."""

    condition: str
    encoder: str
    protocol: str
    number: int
    truncated: bool


class SwapScore(Measured):
    """swap-cost: what the image of the same place is worth, by metric."""

    condition: str
    encoder: str
    protocol: str
    number: int
    scores: dict[str, float]


class RightSoFar(Measured):
    """exact-images: the images of `unit` (encoder, prompt, noise) are all right up to `drawn` of them."""

    unit: str
    drawn: int


class SettledPrompt(Measured, OfImages):
    """exact-images: what became of a prompt. Its allowed edits (`undone` of them give the clean prompt's tokens) are read in
    so many other ways (`rows`). `drawn` images, the clean one among them, which was `right` or not. `held`: whether all were
    right, None where rows are left. `wrong`: the first wrong edit, the `place`th by drift (0 for none) and `given` to the
    encoder. `images`: the clean one, then the first wrong one."""

    encoder: str
    prompt_id: str
    prompt: str
    seed_index: int
    edits: int
    undone: int
    rows: int
    drawn: int
    right: bool
    held: bool | None
    place: int
    wrong: str | None
    given: str

    @property
    def worst_right(self) -> bool:
        """Whether the image of the largest drift is right: what an exhaustive attack finds."""
        return self.place != 1 if self.rows else self.right
