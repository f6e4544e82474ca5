"""Which perturbed sentences count: the semantic constraint C(S) of the paper (section 3) and its published variant."""

from __future__ import annotations

import hashlib
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from leaf_diffusion.text.edits import Candidates
from leaf_diffusion.text.outcomes import CLASS, DELETION, KnownWords, Outcomes
from leaf_diffusion.text.words import load_words

Counts = dict[str, int]
"""How often each word occurs."""
Verdict = Callable[[tuple[str, ...]], bool]
"""Whether a candidate whose changed part holds these dictionary words is allowed."""


class Constraint(ABC):
    """A rule that candidates must satisfy; ``a & b`` asks for both."""

    name: str
    """Identity of the rule for run specs."""

    @abstractmethod
    def allows(self, original: str, current: str, candidates: Candidates) -> NDArray[np.bool_]:
        """bool [n]: which candidates an attack may move to from ``current``, itself made from ``original``.

        ValueError for candidates without text (token rows).
        """

    def holds(self, original: str, perturbed: str) -> bool:
        """Whether a finished ``perturbed`` sentence satisfies the rule (the final check: current = original)."""
        return bool(self.allows(original, original, Candidates.from_texts([perturbed]))[0])

    def __and__(self, other: Constraint) -> Constraint:
        return _Both(self, other)

    def __repr__(self) -> str:
        return f"<constraint {self.name}>"


class _Both(Constraint):
    def __init__(self, left: Constraint, right: Constraint) -> None:
        self._left, self._right = left, right
        self.name = f"{left.name}&{right.name}"

    def allows(self, original: str, current: str, candidates: Candidates) -> NDArray[np.bool_]:
        mask = self._left.allows(original, current, candidates).copy()
        mask[mask] = self._right.allows(original, current, candidates[mask])
        return mask

    def holds(self, original: str, perturbed: str) -> bool:
        return self._left.holds(original, perturbed) and self._right.holds(original, perturbed)


class _WordConstraint(Constraint):
    """A rule on the multiset of dictionary words.

    No word crosses whitespace, so an edit can only change the words of the whitespace chunks it touches: those alone
    are split anew, and the words elsewhere (the rest) are counted once a chunk.
    """

    rule: str

    def __init__(self, words: frozenset[str] | None = None) -> None:
        """``words``: the dictionary, by default the shipped list; single letters other than a and i never count."""
        own = (unicodedata.normalize("NFC", word.lower()) for word in words or ())
        source = load_words() if words is None else own
        self._words = frozenset(word for word in source if len(word) > 1 or word in ("a", "i"))
        self.known = KnownWords(self._words)
        self._outcomes = Outcomes(self.known)
        digest = hashlib.sha256("\n".join(sorted(self._words)).encode()).hexdigest()[:12] if words is not None else ""
        self.name = f"{self.rule}:{digest}" if digest else self.rule

    @abstractmethod
    def _judge(self, original: str, current: str) -> Callable[[Counts], Verdict]:
        """The rule, as a function of the rest's words and then of the changed part's."""

    def allows(self, original: str, current: str, candidates: Candidates) -> NDArray[np.bool_]:
        judge = self._judge(original, current)
        if candidates.base is None:
            verdict = judge({})
            return np.array([verdict(self.known(text)) for text in candidates.texts()], dtype=bool)
        base, slots, codes = candidates.base, candidates.slots, candidates.codes
        if slots is None or codes is None:
            raise TypeError("only edits of a base text have windows")
        if not base.isascii() or codes.max(initial=0) > 127:
            edits, which = np.unique(np.stack([slots, codes], axis=1), axis=0, return_inverse=True)
            found = self._verdicts(base, judge, edits[:, 0].tolist(), edits[:, 1].tolist())
        else:
            return self._verdicts_of_ascii(base, judge, slots, np.where(codes < 0, DELETION, CLASS[codes]))
        return np.array(found, dtype=bool)[which.reshape(-1)]

    def _verdicts(
        self, base: str, judge: Callable[[Counts], Verdict], slots: list[int], codes: list[int]
    ) -> list[bool]:
        """Of edits of any text."""
        windows, found = _Windows(base, judge, self.known), list[bool]()
        for slot, code in zip(slots, codes, strict=True):
            left, right, verdict = windows[slot]
            found.append(verdict(self.known(left + (chr(code) if code >= 0 else "") + right)))
        return found

    def _verdicts_of_ascii(
        self, base: str, judge: Callable[[Counts], Verdict], slots: NDArray[np.int64], kinds: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Of edits of ASCII by classes of characters: few different lists of words come out at a slot."""
        windows, found, which = _Windows(base.lower(), judge, self.known), list[bool](), list[NDArray[np.int64]]()
        runs = np.diff(slots, prepend=-1) != 0  # attacks ask slot by slot
        for slot in slots[runs].tolist():
            left, right, verdict = windows[slot]
            outcomes, of_kind = self._outcomes[left, right]
            which.append(of_kind + len(found))
            found += [verdict(words) for words in outcomes]
        if not which:
            return np.empty(0, dtype=bool)
        return np.array(found)[np.stack(which)[np.cumsum(runs) - 1, kinds]]


class _Windows(dict[int, tuple[str, str, Verdict]]):
    """For a slot the rest of the whitespace chunks that an edit there changes, left and right of it, and the verdict on their
    words."""

    def __init__(self, base: str, judge: Callable[[Counts], Verdict], known: Callable[[str], tuple[str, ...]]) -> None:
        super().__init__()
        self._base, self._judge, self._known = base, judge, known
        self._everything: Counts = dict(Counter(known(base)))
        self._of_span: dict[tuple[int, int], Verdict] = {}

    def __missing__(self, slot: int) -> tuple[str, str, Verdict]:
        base = self._base
        low = start = slot // 2
        high = end = start + slot % 2
        while low and not base[low - 1].isspace():
            low -= 1
        while high < len(base) and not base[high].isspace():
            high += 1
        if (low, high) not in self._of_span:
            rest = self._everything.copy()
            for word in self._known(base[low:high]):
                rest[word] -= 1
                if not rest[word]:
                    del rest[word]
            self._of_span[low, high] = self._judge(rest)
        self[slot] = base[low:start], base[end:high], self._of_span[low, high]
        return self[slot]


class NoNewWords(_WordConstraint):
    """The paper's rule: an edit introduces no new English word (section 3).

    Counted as a multiset against the *original* sentence: no dictionary word may occur more often in the perturbed
    sentence than in the original one. So "water fall" -> "waterfall" and "umbrella" -> "um brella" ("um" is a word)
    are refused, while a typo in one of two equal words, an edited non-word and a split into non-words are allowed.
    For how words are read see ``split_words``.
    """

    rule = "no-new-words"

    def _judge(self, original: str, current: str) -> Callable[[Counts], Verdict]:
        budget = dict(Counter(self.known(original)))

        def for_rest(rest: Counts) -> Verdict:
            spent = any(count > budget.get(word, 0) for word, count in rest.items())

            def verdict(changed: tuple[str, ...]) -> bool:
                if spent:
                    return False
                if len(changed) > 16:  # counting each anew takes quadratic time
                    return all(n + rest.get(w, 0) <= budget.get(w, 0) for w, n in Counter(changed).items())
                return all(changed.count(w) + rest.get(w, 0) <= budget.get(w, 0) for w in changed)

            return verdict

        return for_rest


class PublishedNoNewWords(_WordConstraint):
    """The rule of the authors' public code, for comparisons with it: the *set* of dictionary words must get smaller
    with each edit.

    Measured against the *current* iterate, by size alone: "water fall" -> "waterfall" is allowed, a typo in one of
    two equal words and an edit of a non-word are refused. Dictionary and word splitting are ours.
    """

    rule = "published"

    def _judge(self, original: str, current: str) -> Callable[[Counts], Verdict]:
        size = len(set(self.known(current)))

        def for_rest(rest: Counts) -> Verdict:
            return lambda changed: len(rest.keys() | set(changed)) < size

        return for_rest

    def holds(self, original: str, perturbed: str) -> bool:
        """What can be checked without the iterates: the sentence is unchanged, or its set is smaller than the
        original's.

        Each accepted edit shrinks the set, so this is necessary for any number of edits; for one edit it is also
        sufficient.
        """
        return perturbed == original or super().holds(original, perturbed)


def constraint_from_name(name: str) -> Constraint | None:
    """The constraint that a configuration names: "no-new-words", "published" or "none" (None)."""
    if name == "none":
        return None
    rules = {rule.rule: rule for rule in (NoNewWords, PublishedNoNewWords)}
    if name not in rules:
        raise ValueError(f"unknown constraint {name!r}: choose one of {', '.join([*rules, 'none'])}")
    return rules[name]()
