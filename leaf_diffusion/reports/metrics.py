"""How the metrics of the experiments are named and shown; those of the text-to-image evaluation are in `results`."""

from __future__ import annotations

from collections.abc import Iterable

from leaf_diffusion.metrics.bounds import attack_note
from leaf_diffusion.reports.results import METRICS, Metric
from leaf_diffusion.runs import ResultRow

_known = dict(METRICS)


def metric_of(key: str) -> Metric:
    """A metric of any experiment by its key; one that nobody described is called by its key."""
    return _known.get(key) or Metric(key, key, "")


def is_share(key: str) -> bool:
    """Whether a metric counts: its mean over units is a share, and has a share's interval."""
    return metric_of(key).unit == "%"


def attack_notes(rows: Iterable[ResultRow | None], metric: Metric) -> list[str]:
    """What the figures under attack among `rows` say of robustness."""
    attacked = [row for row in rows if row is not None and row.protocol in ("adaptive", "transfer")]
    if not attacked or not metric.bounds:
        return []
    paired = any(row.baseline is not None for row in attacked)
    exact = [bool(row.exact) for row in attacked]
    return [attack_note(exact, higher_is_better=metric.higher_is_better, difference=paired)]


def _share(
    key: str, title: str, meaning: str, *, digits: int = 1, higher_is_better: bool = True, bounds: bool = True
) -> Metric:
    return described(Metric(key, title, meaning, higher_is_better, 100, digits, "%", bounds))


def described(metric: Metric) -> Metric:
    """The metric of an experiment, from now on known by its key: whether it is a share, and what sentences call it."""
    return _known.setdefault(metric.key, metric)


TEXT_ACCURACY = _share(
    "accuracy", "Texts classified right", "share of texts whose nearest class is the right one", digits=0
)
OVER_QUERIES = _share(
    "accuracy_over_queries",
    "Right after so many random edits",
    "an attacker draws that many distinct allowed single edits at random and keeps the best; computed from all edits, "
    "not sampled",
    digits=0,
    bounds=False,
)
SENSITIVITY = METRICS["sensitivity"]
IMAGE_ACCURACY = _share(
    "image_accuracy",
    "Images classified right",
    "share of images nearest to their class's caption, within eps of an attack",
)
BOTH_TEXT_ACCURACY = _share("text_accuracy", "Texts classified right", "share of texts nearest to their class")

TEXTFARE = described(
    Metric(
        "textfare",
        "TextFARE loss",
        "squared distance from the original's clean embedding",
        higher_is_better=False,
        digits=2,
    )
)
RELATIVE_TEXTFARE = described(
    Metric(
        "textfare_relative",
        "Relative loss",
        "the loss divided by the squared norm of that clean embedding: comparable across models",
        higher_is_better=False,
        digits=3,
    )
)

COSINE = described(Metric("cosine", "Cosine reached", "between the embedding found and the caption's", digits=3))
WORDS_BACK = _share(
    "word_accuracy",
    "Words given back",
    "share of the caption's words that stand in the text found, wherever; a word counts as often as both have it",
)
TOKENS_BACK = _share("token_overlap", "Tokens given back", "the same of the caption's tokens")
TOKENS_IN_PLACE = _share(
    "token_accuracy", "Tokens in their places", "share of the caption's tokens found at their very position"
)
BLEU = described(Metric("bleu", "BLEU", "sacrebleu's sentence BLEU, in lower case", scale=100, digits=1))

CUTS = (1, 5, 10)
"""Ranks that recall is given at."""
TARGET_ABOVE = _share(
    "target_above",
    "Target above the right image",
    "share of captions and targets for which the target's image is found before the caption's own",
    higher_is_better=False,
)


def recall(cut: int) -> Metric:
    return _share(f"recall_at_{cut}", f"Recall@{cut}", f"share of captions whose own image is {_among(cut)}")


def target_recall(cut: int) -> Metric:
    meaning = f"share of captions and targets for which the target's image is {_among(cut)}"
    return _share(f"target_at_{cut}", f"Target@{cut}", meaning, higher_is_better=False)


def _among(cut: int) -> str:
    return "found first" if cut == 1 else f"among the first {cut}"


STYLE = _share(
    "style",
    "Images in the style",
    "share of images whose edge is nearer to the LoRA's wall than to any background of the world; the style itself is "
    "no part of the judge's verdict",
    digits=0,
)

CLIP_ACCURACY = _share(
    "clip_accuracy",
    "Right images",
    "share of images whose CLIPScore with the clean prompt is at least --least-score",
    digits=0,
)
EXACT = _share(
    "exact_accuracy",
    "Right under every allowed edit",
    "share of prompts whose image is right, clean and after every allowed single edit: all that the encoder reads of them is "
    "drawn, nothing is searched. A prompt that is not decided counts as wrong",
    digits=0,
    bounds=False,
)
EXACT_AT_MOST = _share("exact_accuracy_at_most", "The same, undecided prompts as right", "at most so many", digits=0)
UNDONE = _share(
    "undone", "Edits undone", "share of a prompt's allowed edits that give the clean prompt's own tokens", bounds=False
)
ROWS = described(
    Metric(
        "distinct_rows",
        "Readings",
        "distinct token rows of a prompt's allowed edits, the clean one aside",
        higher_is_better=False,
        digits=0,
        bounds=False,
    )
)
