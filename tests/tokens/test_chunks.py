"""Chunk-wise tokenization against the tokenizer itself, over every single edit."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from leaf_diffusion.text import ALPHABET, Candidates, n_slots, neighbours, random_edits
from leaf_diffusion.tokens.chunks import ChunkTokenizer
from leaf_diffusion.tokens.tokenizer import RowTokenizer, clip_tokenizer

TEXTS = [
    "a Photo of a red umbrella", "it's 20% off, isn't it?", "  double  spaces, at both ends ", "a&amp;b &lt;3", "x", "",
    "café naïve", "tab\there", "😀 party", "<|endoftext|> in a text", "a <| b |> c", "endoftext> &",
    "a <|endoftext> b|c", "<endoftext|>", "x|startoftext|>", "<|startoftxt|>",
    "1234 don't stop!!",
    "word " * 80, "un" * 60 + " tail of it",
]  # fmt: skip


def slow(rows: RowTokenizer, texts: list[str]) -> list[tuple[int, ...]]:
    return [tuple(row) if len(row) <= 77 else (*row[:76], row[-1]) for row in rows(texts)]


@pytest.fixture(scope="module", params=["transformers", "open_clip"])
def rows(request: pytest.FixtureRequest) -> RowTokenizer:
    if request.param == "transformers":
        return RowTokenizer(clip_tokenizer())
    from open_clip.tokenizer import SimpleTokenizer

    return RowTokenizer(SimpleTokenizer())


@pytest.mark.parametrize("text", TEXTS)
def test_every_edit_has_the_tokenizers_own_tokens(rows: RowTokenizer, text: str) -> None:
    candidates = neighbours(text) if len(text) < 60 else random_edits(text, 300, np.random.default_rng(0))
    if rows.pad_id is None:  # open_clip's tokenizer is pure Python
        candidates = candidates[:: max(1, len(candidates) // 400)]
    for pieces in dict.fromkeys([rows.pieces, None]):
        assert ChunkTokenizer(rows, 77, pieces).read([candidates])[0] == slow(rows, candidates.texts())


def test_texts_that_are_read_together_are_read_alike(rows: RowTokenizer) -> None:
    tokenizer = ChunkTokenizer(rows, 77, rows.pieces)
    many = [Candidates.none(), *(random_edits(text or "x", 40, np.random.default_rng(0)) for text in TEXTS[:-2])]
    for _ in range(2):
        read = tokenizer.read(many)
        assert len(read) == len(many)
        assert list(read) == [slow(rows, candidates.texts()) for candidates in many]
        for i, (owner, row) in enumerate(zip(read.owners.tolist(), read.rows.lists(), strict=True)):
            assert row in read[owner], i
    assert len(tokenizer.read([])) == 0


def test_padding_that_is_a_token_wherever_it_stands() -> None:
    """SD2 pads with "!", which its tokenizer then reads as padding in every text."""
    tokenizer = clip_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "!"})
    rows = RowTokenizer(tokenizer)
    assert rows.pieces is not None
    for text in ("stop! here", "a?!?b c!", "no sign"):
        candidates = neighbours(text)
        assert ChunkTokenizer(rows, 77, rows.pieces).read([candidates])[0] == slow(rows, candidates.texts())
    tokenizer.add_tokens(["<cat>"])  # a token of letters may stand within a word
    assert RowTokenizer(tokenizer).pieces is None


def test_only_clips_own_splitting_is_split_by_pieces() -> None:
    tokenizer = clip_tokenizer()
    assert RowTokenizer(tokenizer).pieces is not None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert RowTokenizer(tokenizer).pieces is None


ROWS = RowTokenizer(clip_tokenizer())


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from(ALPHABET + "éß\t\n猫İ"), max_size=20), st.data())
def test_any_text(text: str, data: st.DataObject) -> None:
    rows = ROWS
    slots = data.draw(st.lists(st.integers(0, n_slots(text) - 1), min_size=1, max_size=20))
    letters = data.draw(
        st.lists(st.sampled_from([*ALPHABET, "", "é", "\n", "猫"]), min_size=len(slots), max_size=len(slots))
    )
    candidates = Candidates.edits(text, slots, letters)
    assert ChunkTokenizer(rows, 77, rows.pieces).read([candidates])[0] == slow(rows, candidates.texts())


def test_the_memo_is_used_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaf_diffusion.tokens.memo.MEMO", 50)
    asked: list[str] = []
    rows = RowTokenizer(clip_tokenizer())

    def watched(texts: Sequence[str]) -> list[list[int]]:
        asked.extend(texts)
        return rows(texts)

    tokenizer = ChunkTokenizer(watched, 77)
    candidates = neighbours("a cat")
    first = tokenizer.read([candidates])[0]
    assert len(asked) < 0.8 * len(candidates)  # lower case, and chunks in place of texts
    asked.clear()
    assert tokenizer.read([neighbours("a dog")])[0] != first  # forgets, and is right all the same
    assert tokenizer.read([candidates])[0] == first == slow(rows, candidates.texts())


def test_only_edits_have_chunks() -> None:
    with pytest.raises(ValueError, match="edits of a base text"):
        ChunkTokenizer(RowTokenizer(clip_tokenizer()), 77).read([Candidates.from_texts(["a"])])
