"""The pages that say what is refused quote the messages that the code has."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("captions-and-prompts", "weights-and-images")
LITTLE = 12
"""Characters that a message must have in common with a text of the code."""


@cache
def texts_of_the_code() -> str:
    """Every text in the package, the pieces of f-strings too, with a character between them that no message has."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "leaf_diffusion").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return "\0".join(node.value for node in nodes if isinstance(node.value, str) and len(node.value) >= LITTLE)


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
        parts = (message[i : i + LITTLE] for i in range(len(message) - LITTLE + 1))
        assert any(part in texts_of_the_code() for part in parts), message
