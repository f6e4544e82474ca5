"""Words replaced by near ones: k words of a prompt, each within a stated similarity of what stood there.

Source: Jin et al. 2020 (TextFooler: words ranked by what the text is worth without them, near words by the cosine of word
vectors, stop words stay). In the place of vectors of words stand a text encoder's embeddings of the words alone, less what
all words share (Mu and Viswanath 2018).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, takewhile
from typing import ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from leaf_diffusion.attacks.base import Attack, Outcome, Problem
from leaf_diffusion.attacks.search import Iterates, best_few
from leaf_diffusion.encoders.base import Feature, TextEncoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.scoring.objectives import Drift
from leaf_diffusion.scoring.plain import PlainScore
from leaf_diffusion.scoring.scorer import BoundScore, Scorer
from leaf_diffusion.text import Candidates, load_words, pieces, word_distance
from leaf_diffusion.text.files import read_texts

STOP = frozenset(
    """a about above across after again against all almost along also although always am among an and another any anybody anyone
    anything are around as at be because been before behind being below beneath beside besides between beyond both but by can
    cannot could did do does doing done down during each either else every everybody everyone everything except few for from
    had has have having he her here hers herself him himself his how however i if in inside into is it its itself just less
    many may me might mine more most much must my myself near neither never no nobody none nor not nothing now of off on once
    one only onto or other others our ours ourselves out outside over own per quite rather same several shall she should since
    so some somebody someone something still such than that the their theirs them themselves then there these they this those
    though through throughout till to together too toward towards under underneath unless until up upon us very was we were
    what whatever when where whether which while who whom whose why will with within without would yet you your yours yourself
    yourselves""".split()  # noqa: SIM905
)
"""Words of closed classes: they are not replaced, and none is put in unless a list names it."""
MOST_WORDS = 200_000
"""Words of a list of candidates."""
LONGEST_WORD = 64
AT_ONCE = 512
EVERY = 50
"""The mean embedding is that of each so manyth of the shipped words."""
POSSESSIVE = re.compile(r"['\u2019]s$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class WordSubstitution(Attack):
    """``k`` rounds; in each the words are ranked by the score of the prompt without them, the words near to the first are put
    in their places, and the best text stays if it scores higher. At most |words| + n_words * n_candidates queries a round.

    Threat model: at most ``k`` words, each replaced once; ``distance`` counts words. The similarity of two words is the cosine
    of their embeddings as texts of their own, less the mean embedding of English words. Case and possessive stay; stop
    words, what touches digits, and what is neither an English word nor on the list are left alone. With another word it is
    another prompt, not a misspelt one, so no rule against new words applies.
    """

    name: ClassVar[str] = "words"
    unit: ClassVar[str] = "word"
    similarity: float = 0.5
    """The least similarity of a word and the one in its place, from -1 to 1."""
    n_candidates: int = 50
    """The nearest so many are tried for a word."""
    n_words: int = 5
    """Words that the ranking keeps a round."""
    vocabulary: str = ""
    """A file of words to put in, one a line. Default: the shipped English words that the encoder reads as one token."""
    encoder: str = ""
    """The source of the encoder that compares words, without a defence. Default: the attacked one; encoders are compared
    fairly only by one that is named."""
    sentence: float | None = None
    """The least cosine of the whole texts, by the named encoder."""

    def __post_init__(self) -> None:
        if wrong := [name for name in ("n_candidates", "n_words") if getattr(self, name) < 1]:
            raise ValueError(f"{wrong[0]} must be at least 1, got {getattr(self, wrong[0])}")
        for name, value in (("similarity", self.similarity), ("sentence", self.sentence)):
            if value is not None and not -1 <= value <= 1:
                raise ValueError(f"{name} is a cosine and must lie between -1 and 1, got {value}")
        if self.sentence is not None and not self.encoder:
            raise ValueError(
                "sentence needs an encoder that is named: bounded by itself an encoder would pass any attack"
            )
        _listed(self.vocabulary)

    def settings(self) -> dict[str, object]:
        """The list and the encoder by what they hold, too."""
        more: dict[str, object] = {}
        if self.vocabulary:
            more["vocabulary_sha256"] = hashlib.sha256("\n".join(_listed(self.vocabulary)).encode()).hexdigest()
        if self.encoder:
            more["encoder_fingerprint"] = _named(self.encoder, "cpu").fingerprint
        return super().settings() | more

    @staticmethod
    def measure(prompt: str, perturbed: str) -> int:
        return word_distance(prompt, perturbed)

    def run(self, problem: Problem) -> list[Outcome]:
        prompts, state = list(problem.prompts), Iterates(problem.prompts, problem.score)
        encoder = self._compared_by(problem.score)
        near = _word_vectors(encoder, self.vocabulary) if prompts and problem.k else None
        free = [{} if near is None else self._replacements(prompt, near, encoder) for prompt in prompts]
        whole = None
        if self.sentence is not None:
            whole = Scorer(encoder, Drift("cosine", feature=_feature(encoder))).bind(prompts)
        for done in range(1, problem.k + 1):
            active = [i for i in range(len(prompts)) if free[i] and not state.finished[i]]
            many = [i for i in active if len(free[i]) > self.n_words]
            ranking = state.measure(
                {i: _texts(state.texts[i], ((at, "") for at in free[i])) for i in many}, best=self.n_words
            )
            tried, candidates = {i: list(free[i]) for i in active}, {}
            for i in active:
                if i in ranking:
                    tried[i] = sorted(tried[i][j] for j in best_few(ranking[i], self.n_words))
                candidates[i] = _texts(state.texts[i], ((at, new) for at in tried[i] for new in free[i][at]))
            if whole is not None:
                drifts = whole([candidates.get(i, Candidates.none()) for i in range(len(prompts))])
                candidates = {i: c[(1 - drifts[i] >= self.sentence).numpy()] for i, c in candidates.items()}
            before = {i: pieces(state.texts[i]) for i in active}
            state.advance(candidates)
            for i in active:  # each word is replaced once; what gained nothing is not tried again on the same text
                changed = [at for at, piece in enumerate(pieces(state.texts[i])) if piece != before[i][at]]
                for at in changed or tried[i]:
                    del free[i][at]
            problem.tell(done * len(prompts), problem.k * len(prompts))
        return list(state.texts)

    def _compared_by(self, score: BoundScore) -> TextEncoder:
        own = score.encoder if isinstance(score, PlainScore) else None
        if self.encoder:
            return _named(self.encoder, "cpu" if own is None else str(own.device))
        if own is None:
            raise ValueError("several encoders are attacked at once: name the one that compares words (encoder)")
        return own

    def _replacements(self, text: str, near: WordVectors, encoder: TextEncoder) -> dict[int, list[str]]:
        """What may stand in the place of each word (by its place among the pieces of the text), nearest first."""
        found, cut = dict[int, list[str]](), pieces(text)
        for at in range(1, len(cut), 2):
            stem = POSSESSIVE.sub("", cut[at])
            alone = not any(_joins(c) for c in (cut[at - 1][-1:], cut[at + 1][:1]))
            if alone and stem.lower() not in STOP and (stem.lower() in load_words() or stem.lower() in near.known):
                words = near.of(stem.lower(), encoder, self.similarity, self.n_candidates)
                if words:
                    found[at] = [_cased(word, stem) + cut[at][len(stem) :] for word in words]
        return found


class WordVectors:
    """The embeddings of candidate words by an encoder."""

    def __init__(self, encoder: TextEncoder, words: Sequence[str], *, one_token: bool) -> None:
        english = sorted(load_words())
        self._mean = _embedded(encoder, english[::EVERY]).mean(0)
        if one_token:
            rows = encoder.tokenize([*words, "a"])
            words = [word for word, row in zip(words, rows[:-1], strict=True) if len(row) == len(rows[-1])]
        self.words, self.known = list(words), frozenset(word.lower() for word in words)
        self._vectors = normalize(_embedded(encoder, self.words) - self._mean, dim=-1)

    def of(self, word: str, encoder: TextEncoder, least: float, most: int) -> list[str]:
        """The nearest words, nearest first, at most so many, at least so similar; not the word itself."""
        vector = normalize(_embedded(encoder, [word])[0] - self._mean, dim=-1)
        similarity = (self._vectors @ vector).numpy()
        order = takewhile(lambda j: similarity[j] >= least, np.argsort(-similarity, kind="stable"))
        return list(islice((each for j in order if (each := self.words[j]).lower() != word), most))


_known: WeakKeyDictionary[TextEncoder, dict[tuple[str, str], WordVectors]] = WeakKeyDictionary()


def _word_vectors(encoder: TextEncoder, vocabulary: str) -> WordVectors:
    """Remembered for the last weights of an encoder: of ViT-L the words take minutes on a CPU."""
    mine, place = _known.setdefault(encoder, {}), (encoder.fingerprint, vocabulary)
    if place not in mine:
        mine.clear()
        mine[place] = WordVectors(encoder, _listed(vocabulary), one_token=not vocabulary)
    return mine[place]


@lru_cache(maxsize=2)
def _named(source: str, device: str) -> TextEncoder:
    return load_text_encoder(source, device=device)


@lru_cache(maxsize=8)
def _listed(vocabulary: str) -> tuple[str, ...]:
    """The words of a file, or the shipped ones. ValueError for what is no single word, and for too many."""
    if not vocabulary:
        return tuple(word for word in sorted(load_words()) if word not in STOP and word.isalpha())
    rows = [row for row in read_texts(vocabulary) if row.text]
    if not 1 <= len(rows) <= MOST_WORDS:
        raise ValueError(f"{vocabulary}: {len(rows):,} words; a list has one at least and {MOST_WORDS:,} at most")
    for row in rows:
        if len(row.text) > LONGEST_WORD or [*map(bool, pieces(row.text))] != [False, True, False]:
            raise ValueError(f"{row.where}: {row.text[:40]!r} is no single word of letters; give one a line")
    return tuple(dict.fromkeys(row.text for row in rows))


def _feature(encoder: TextEncoder) -> Feature:
    return "projected" if encoder.has_projection else "pooled"


def _embedded(encoder: TextEncoder, words: Sequence[str]) -> Tensor:
    """float32 [n, d] on the CPU, of the words as the tower reads them, without a defence."""
    rows = encoder.tokenize(words)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = list[Tensor]()
    with torch.inference_mode():
        for start in range(0, len(order), AT_ONCE):
            some = [rows[i] for i in order[start : start + AT_ONCE]]
            found.append(encoder.features(some, _feature(encoder)).float().cpu())
    return torch.cat(found)[torch.tensor(order).argsort()]


def _texts(text: str, replacements: Iterable[tuple[int, str]]) -> Candidates:
    """The text with another word, for each (place among its pieces, word)."""
    cut = pieces(text)
    return Candidates.from_texts(["".join([*cut[:at], new, *cut[at + 1 :]]) for at, new in replacements])


def _joins(character: str) -> bool:
    """Whether a character beside a word makes it part of something else: b4ll, cat_2, an accent of its own."""
    return character.isalnum() or character == "_" or unicodedata.combining(character or " ") > 0


def _cased(word: str, like: str) -> str:
    """A word in the case of the one it stands for."""
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word
