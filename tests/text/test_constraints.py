"""The constraints against their naive definitions, and the points in which they differ."""

import time
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaf_diffusion.text import (
    Candidates,
    Constraint,
    NoNewWords,
    PublishedNoNewWords,
    constraint_from_name,
    load_words,
    neighbours,
    random_edits,
)

WORDS = frozenset(
    ["a", "i", "cat", "cats", "at", "hat", "water", "fall", "waterfall", "don't", "café", "s", "um", "ca"]
)
PIECES = [
    "cat",
    "cats",
    "at",
    "a",
    "i",
    "water",
    "fall",
    "um",
    "don't",
    "cat's",
    "café",
    "cafe\u0301",
    "Σας",
    "İ",
    "xq",
    "🐈",
]
SENTENCE = st.lists(
    st.one_of(st.sampled_from(PIECES), st.text("acst'\u2019_-1é \u0301", max_size=3)), min_size=1, max_size=7
).flatmap(lambda pieces: st.sampled_from([" ", "  ", "\t", "\u2003", "-", "_", ""]).map(lambda glue: glue.join(pieces)))


def naive_words(text: str) -> Counter[str]:
    """The definition, character by character and over the whole sentence."""
    text = unicodedata.normalize("NFC", text.lower()).replace("\u2019", "'")
    found, run = [], ""
    for i, c in enumerate(text + " "):
        inner = c == "'" and bool(run) and text[i - 1].isalpha() and text[i + 1 : i + 2].isalpha()
        if c.isalpha() or inner:
            run += c
        elif run:
            found.append(run.removesuffix("'s"))
            run = ""
    return Counter(word for word in found if word in WORDS and (len(word) > 1 or word in "ai"))


def naive_no_new(original: str, candidate: str) -> bool:
    before, after = naive_words(original), naive_words(candidate)
    return all(after[word] <= before[word] for word in after)


def naive_published(current: str, candidate: str) -> bool:
    return len(set(naive_words(candidate))) < len(set(naive_words(current)))


@settings(max_examples=150, deadline=None)
@given(SENTENCE, SENTENCE, st.integers(0, 2**32))
def test_window_evaluation_is_exact(original: str, other: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one_edit = random_edits(original, 1, rng).text(0)
    for current in (original, one_edit, other):
        edits = random_edits(current, 40, rng, "acstumr' -_é\u0301\u2003Σ")
        for form in (edits, Candidates.from_texts(edits.texts())):
            assert NoNewWords(WORDS).allows(original, current, form).tolist() == [
                naive_no_new(original, text) for text in edits.texts()
            ]
            assert PublishedNoNewWords(WORDS).allows(original, current, form).tolist() == [
                naive_published(current, text) for text in edits.texts()
            ]


@pytest.mark.parametrize("text", ["Two cats, a dog's um brella", "i as a's", "'s um-a 1cat"])
@pytest.mark.parametrize("rule", [NoNewWords(), PublishedNoNewWords()], ids=lambda rule: rule.name)
def test_every_edit_of_ascii_is_judged_as_its_whole_text(text: str, rule: Constraint) -> None:
    edits = neighbours(text)
    first, again = (rule.allows(text, text, edits).tolist() for _ in range(2))
    assert first == again == rule.allows(text, text, Candidates.from_texts(edits.texts())).tolist()
    assert len(set(first)) == 2


@pytest.mark.parametrize(
    ("original", "perturbed", "paper", "published"),
    [
        ("a red umbrella", "a red umb rella", True, True),
        ("a red umbrella", "a red um brella", False, False),
        ("a water fall", "a waterfall", False, True),
        ("the cat and the dog", "the cat and thxe dog", True, False),
        ("the cat and the dog", "the cat and the cat", False, True),
        ("xqzz cat", "xqz cat", True, False),
        ("a cat", "a hat", False, False),
        ("a cat", "a cat", True, True),
        ("a cat", "a cta", True, True),
        ("two cats", "two cat's", False, False),
        ("the cat's hat", "the cats hat", False, False),
        ("a b c", "a b", True, False),
        ("a rainbow", "a rain_bow", False, False),
        ("A Cat", "a cat", True, False),
        ("it is I", "it is", True, True),
    ],
)
def test_the_two_rules_on_english(original: str, perturbed: str, paper: bool, published: bool) -> None:
    assert NoNewWords().holds(original, perturbed) is paper
    assert PublishedNoNewWords().holds(original, perturbed) is published


def test_the_paper_counts_against_the_original_and_the_published_code_against_the_iterate() -> None:
    back = Candidates.from_texts(["a cat"])
    assert NoNewWords().allows("a cat", "a cxat", back).tolist() == [True]
    assert PublishedNoNewWords().allows("a cat", "a cxat", back).tolist() == [False]
    assert PublishedNoNewWords().allows("a cat", "a cxat", Candidates.from_texts(["x cxat"])).tolist() == [True]


def test_both_rules_together() -> None:
    both = NoNewWords() & PublishedNoNewWords()
    assert both.name == "no-new-words&published"
    texts = ["a waterfall", "a water fxll", "a water fall", "xa water fall"]
    assert both.allows("a water fall", "a water fall", Candidates.from_texts(texts)).tolist() == [
        False,
        True,
        False,
        True,
    ]
    assert both.holds("a water fall", "a water fxll")
    assert not both.holds("a water fall", "a waterfall")
    edits = neighbours("a hat", "tc ")
    expected = [NoNewWords().holds("a hat", t) and PublishedNoNewWords().holds("a hat", t) for t in edits.texts()]
    assert both.allows("a hat", "a hat", edits).tolist() == expected


def test_empty_lists_and_token_rows() -> None:
    for rule in (NoNewWords(), PublishedNoNewWords(), NoNewWords() & PublishedNoNewWords()):
        for empty in (Candidates.none(), Candidates.edits("a cat", [], [])):
            mask = rule.allows("a cat", "a cat", empty)
            assert mask.shape == (0,)
            assert mask.dtype == bool
        with pytest.raises(ValueError, match="token rows"):
            rule.allows("a cat", "a cat", Candidates.from_tokens([[1]]))


def test_names_and_own_dictionaries() -> None:
    assert constraint_from_name("none") is None
    for name in ("no-new-words", "published"):
        rule = constraint_from_name(name)
        assert isinstance(rule, Constraint)
        assert rule.name == name
    with pytest.raises(ValueError, match=r"no-new-words, published, none"):
        constraint_from_name("strict")
    own = NoNewWords(frozenset(["Zorp"]))
    assert own.name != "no-new-words"
    assert own.name != NoNewWords(frozenset(["zarp"])).name
    assert not own.holds("zrp", "zorp")
    assert own.holds("a cat", "a hat")
    assert NoNewWords(frozenset()).holds("a cat", "a hat")


def test_the_word_list() -> None:
    words = load_words()
    assert len(words) > 70_000
    assert {"cat", "cats", "café", "don't", "grey", "umbrella", "a", "i"} <= words
    assert not any(word.endswith("'s") or word != word.lower() for word in words)
    assert {word for word in words if len(word) == 1} == {"a", "i"}
    assert not words & {"rella", "umb", "teh", "umbrela"}


def test_a_long_prompt_is_judged_in_linear_time() -> None:
    text = "a cat and a hat " * 4000
    middle = len(text) // 2
    began = time.perf_counter()
    assert NoNewWords().holds(text, f"{text[:middle]}qx{text[middle:]}")
    assert not NoNewWords().holds(text, f"{text} dog")
    assert time.perf_counter() - began < 1
