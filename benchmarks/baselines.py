"""What the engine is measured against, and the towers and sentences it is measured on."""

from __future__ import annotations

import leaf_diffusion  # noqa: F401  # first: it repairs a torchvision without CUDA

# isort: split
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from leaf_diffusion.attacks import LeafAttack
from leaf_diffusion.attacks.base import Allowed, Outcome, Problem
from leaf_diffusion.attacks.charmer import probes
from leaf_diffusion.encoders import HFTextEncoder, clip_tokenizer
from leaf_diffusion.scoring.plain import PlainScore
from leaf_diffusion.scoring.scorer import ENGINES
from leaf_diffusion.text import ALPHABET, DELETE, Candidates, Constraint, n_slots

if TYPE_CHECKING:
    from leaf_diffusion.scoring.scorer import BoundScore

SHAPES: dict[str, dict[str, int]] = {
    "vit-l": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768},
    "small": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4, "projection_dim": 256},
    "host": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "projection_dim": 8},
}  # fmt: skip
COCO = (
    "A man riding a wave on top of a surfboard.", "Two dogs are playing with a frisbee in the park.",
    "A kitchen with a stove, a sink and a large window.", "A red bus is parked on the side of the street.",
    "A woman holding an umbrella walks through the rain.", "A plate of food with broccoli and some meat.",
    "Several people are flying kites on a sunny beach.", "A cat is sleeping on a laptop computer.",
    "A group of zebras grazing in a dry field.", "An old clock tower stands in the middle of town.",
    "A young boy swings a bat at a baseball game.", "A bedroom with a neatly made bed and two lamps.",
    "A train travels down the tracks near a station.", "Three giraffes standing next to a tall tree.",
    "A bowl of oranges and bananas on a wooden table.", "A skier is jumping off a snowy mountain slope.",
)  # fmt: skip


SHORT = tuple(f"a {colour} {noun} on a {place}" for colour, place in (("red", "table"), ("blue", "beach"))
              for noun in ("umbrella", "cat", "mushroom", "boat", "house", "flower", "key", "crown"))  # fmt: skip
ADJECTIVES = ("", " small", " new", " famous", " wooden", " quiet", " modern", " dirty")
MANY = tuple(
    caption.replace(" a ", f" a{adjective} ", 1) for adjective in ADJECTIVES for caption in COCO if " a " in caption
)
SENTENCES = {"coco": COCO, "short": SHORT, "many": MANY}
"""Captions as they stand under photographs (12 to 15 tokens with begin and end), short prompts (8), and those captions that
hold " a " with an adjective there (up to 16 tokens): as many as a GPU needs."""


def tower(shape: str, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> HFTextEncoder:
    """A CLIP text tower of random weights: speed does not depend on what it has learnt."""
    torch.manual_seed(0)
    config = CLIPTextConfig(**SHAPES[shape], bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)
    with torch.device(device):
        module = CLIPTextModelWithProjection(config).eval()
    return HFTextEncoder(module.to(device, dtype), clip_tokenizer(), name=shape)


def clock(device: torch.device) -> float:
    """Seconds: CPU time of the process, or on a GPU the time of day once everything that was started is done."""
    if device.type == "cpu":
        return process_time()
    torch.cuda.synchronize(device)
    return perf_counter()


class PublishedScore(PlainScore):
    """As the paper's code scores: one sentence at a time, every candidate tokenized and forwarded, in batches of 256
    padded to the longest of them, or (`to_context`, its training attack) to the whole context."""

    to_context = False

    def __call__(self, candidates: Sequence[Candidates], *, best: int = 1) -> list[Tensor]:
        scores = []
        with torch.inference_mode():
            for i, some in enumerate(candidates):
                self.queries[i] += len(some)
                texts = some.texts() if len(some) else []
                rows = self.encoder.tokenize(texts)
                pieces = [self.goals[i](self._forward(rows[j : j + 256])) for j in range(0, len(rows), 256)]
                scores.append(torch.cat(pieces) if pieces else torch.empty(0))
        return scores

    def _forward(self, rows: list[list[int]]) -> Tensor:
        if self.to_context:  # what stands behind end-of-text changes nothing but the cost
            rows = [[*row, *[row[-1]] * (self.encoder.context_length - len(row))] for row in rows]
        return self.encoder.features(rows, self.feature)


class PublishedTrainingScore(PublishedScore):
    """The same, padded to the whole context."""

    to_context = True


ENGINES["published"] = PublishedScore
ENGINES["published-training"] = PublishedTrainingScore


class WholeSentences(Constraint):
    """A constraint as the paper's code evaluates it: the words of every candidate's whole sentence are looked up.

    `refuses=False` forwards everything all the same: the paper's code puts the sentence itself in the place of a
    candidate that is not allowed, and forwards that.
    """

    def __init__(self, rule: Constraint, *, refuses: bool = False) -> None:
        self.rule, self.name, self.refuses = rule, rule.name, refuses

    def allows(self, original: str, current: str, candidates: Candidates) -> NDArray[np.bool_]:
        allowed = self.rule.allows(original, current, Candidates.from_texts(candidates.texts()))
        return allowed if self.refuses else np.ones(len(candidates), dtype=bool)


@dataclass(frozen=True, kw_only=True)
class PublishedLeaf(LeafAttack):
    """The LEAF attack as the paper's code runs it: `rho` random slots, then `rho` random characters, both under the
    constraint; the sentence itself takes the place of a refused one. (Ours draws allowed characters only.)"""

    name: ClassVar[str] = "leaf-published"

    def run(self, problem: Problem) -> list[Outcome]:
        texts = list(problem.prompts)
        for _ in range(problem.k):
            slots = [
                rng.permutation(n_slots(text))[: self.rho].tolist()
                for text, rng in zip(texts, problem.rngs, strict=True)
            ]
            asked = [probes(text, chosen) for text, chosen in zip(texts, slots, strict=True)]
            best = self._best(texts, asked, problem.score, problem.allowed)
            letters = np.array([*ALPHABET, DELETE], dtype=object)
            drawn = [rng.permutation(len(letters))[: self.rho] for rng in problem.rngs]
            asked = [
                Candidates.edits(text, [chosen[j]] * len(some), letters[some])
                for text, chosen, j, some in zip(texts, slots, best, drawn, strict=True)
            ]
            best = self._best(texts, asked, problem.score, problem.allowed)
            texts = [each.text(j) for each, j in zip(asked, best, strict=True)]
        return list(texts)

    def _best(self, texts: list[str], asked: list[Candidates], score: BoundScore, allowed: Allowed) -> list[int]:
        """Best candidate of each text; `asked` is changed to what was scored."""
        for i, (text, each) in enumerate(zip(texts, asked, strict=True)):
            assert each.slots is not None and each.characters is not None
            refused = ~allowed(i, text, each)
            slots, characters = each.slots.copy(), each.characters.copy()
            slots[refused], characters[refused] = 1, text[0]
            asked[i] = Candidates.edits(text, slots, characters)
        return [int(scores.argmax()) for scores in score(asked)]


def product_limit(
    width: int, dtype: torch.dtype = torch.float32, rows: int | None = None, device: torch.device | None = None
) -> float:
    """Floating-point operations a second of this device's matrix product [rows, width] x [width, 4 width], now: the best
    of 8 on a CPU (4096 rows), of 8 times 10 in a row on a GPU (65536 rows)."""
    device = device or torch.device("cpu")
    rows, repeats = rows or (4096 if device.type == "cpu" else 65536), 1 if device.type == "cpu" else 10
    a, b = (torch.randn(n, m, device=device).to(dtype) for n, m in ((rows, width), (width, 4 * width)))
    out = a @ b
    best = float("inf")
    for _ in range(8):
        started = clock(device)
        for _ in range(repeats):
            torch.mm(a, b, out=out)
        best = min(best, (clock(device) - started) / repeats)
    return 2.0 * rows * width * 4 * width / best


def needed_operations(encoder: HFTextEncoder, nodes: int, rows: int, keys: int, states: bool = False) -> float:
    """Floating-point operations of the tokens that a forest computes: `nodes` tokens, `rows` sentences, `keys` pairs of
    a query and a key. The last block computes no more than keys and values but for the sentences' ends, unless all
    `states` are asked for."""
    c: Any = encoder.config
    d, inner, layers = c.hidden_size, c.intermediate_size, c.num_hidden_layers
    full, keys_and_values, ends = 2 * (4 * d * d + 2 * d * inner), 2 * 2 * d * d, 2 * (2 * d * d + 2 * d * inner)
    attention = 2 * 2 * d * keys
    if states:
        return layers * (full * nodes + attention)
    return (layers - 1) * (full * nodes + attention) + keys_and_values * nodes + ends * rows
