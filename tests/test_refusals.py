"""The pages that say what is refused quote the messages that the code has."""

import ast
import re
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("captions-and-prompts", "weights-and-images")
LITTLE = 12
"""Characters that a message must have in common with a text of the code."""


@cache
def texts_of_the_code() -> list[str]:
    """Every text in the package, the pieces of f-strings too."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "leaf_diffusion").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [node.value for node in nodes if isinstance(node.value, str) and len(node.value) >= LITTLE]


def messages(page: str) -> list[str]:
    """What stands in code marks in the last column of the tables of refusals."""
    text = (ROOT / "docs" / "guide" / f"{page}.md").read_text(encoding="utf-8")
    tables = re.findall(r"\| refused \| message \|\n\|[-|]+\|\n((?:\|.*\n)+)", text)
    rows = [row for table in tables for row in table.splitlines()]
    return [quoted for row in rows for quoted in re.findall(r"`([^`]{20,})`", row.rpartition(" | ")[2])]


@pytest.mark.parametrize("page", PAGES)
def test_a_quoted_message_is_one_of_the_code(page: str) -> None:
    quoted = messages(page)
    assert len(quoted) >= 10
    for message in quoted:
        matcher = SequenceMatcher(b=message, autojunk=False)
        longest = 0
        for text in texts_of_the_code():
            matcher.set_seq1(text)
            longest = max(longest, matcher.find_longest_match().size)
        assert longest >= LITTLE, message
