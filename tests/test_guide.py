"""Every page of the guide, and the README, does what it says: its Python runs, its commands and links exist."""

from __future__ import annotations

import re
import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest

from leaf_diffusion.attacks import ATTACKS
from leaf_diffusion.cli import main as cli
from leaf_diffusion.diffusion.families import FAMILIES
from leaf_diffusion.encoders import sources
from leaf_diffusion.evaluation.t2i import options

ROOT = Path(__file__).parent.parent
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "docs" / "index.md", *GUIDE]
NOT_RUN = "<!-- not run: needs the Hub -->"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block. line: that of its first line in the page."""

    language: str
    text: str
    line: int
    run: bool


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        run = not before.endswith(f"{NOT_RUN}\n")
        found.append(Block(match[1], match[2], before.count("\n") + 2, run))
    return [block for block in found if block.language == language]


def named(page: Path) -> str:
    return page.stem


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=named)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # a module, as a script is one: dataclasses and registered loaders look their own up
    module = ModuleType(f"guide_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with patch.dict(ATTACKS), patch.dict(sources._LOADERS), patch.dict(sources._KINDS), patch.dict(FAMILIES):
        for block in blocks(page, "python"):
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            if block.run:
                exec(code, module.__dict__)


@cache
def options_of(command: str) -> frozenset[str]:
    """The long options in a command's --help; "world build" is a command, too."""
    said = StringIO()
    with redirect_stdout(said):
        assert cli.main([*command.split(), "--help"]) == 0
    # what a row of the table begins with: options that a description mentions are another command's
    rows = re.findall(r"^\W*?((?:--?[\w-]+(?:,? |$))+)", said.getvalue(), re.MULTILINE)
    return frozenset(re.findall(r"--[\w-]+", " ".join(rows)))


def commands(page: Path) -> list[list[str]]:
    """The words of every leaf-diffusion command: in bash blocks, and `inline`."""
    text = page.read_text(encoding="utf-8")
    lines = [line for b in blocks(page, "bash") for line in b.text.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    return [shlex.split(line, comments=True) for line in [*lines, *spans] if line.startswith("leaf-diffusion ")]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    for _, *words in commands(page):
        if words[0].startswith(("-", "<")):
            continue
        assert words[0] in cli.COMMANDS, words
        command = " ".join(words[:2] if words[0] == "world" else words[:1])
        unknown = {w.partition("=")[0] for w in words if w.startswith("--")} - options_of(command)
        assert not unknown, f"leaf-diffusion {command} has no {', '.join(sorted(unknown))}"
    # an option alone in the text belongs to some command
    known = frozenset().union(*(options_of(name) for name in cli.COMMANDS if name != "world"))
    spans = re.findall(r"`(--[\w-]+)[^`\n]*`", FENCE.sub("", page.read_text(encoding="utf-8")))
    assert set(spans) <= known


@pytest.mark.parametrize("page", [page for page in GUIDE if blocks(page, "yaml")], ids=named)
def test_the_yaml_of_a_page_is_a_configuration(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "yaml"):
        file = tmp_path / "run.yaml"
        file.write_text(block.text)
        assert options.parse(["--config", str(file)]) != options.parse([])


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", FENCE.sub("", page.read_text(encoding="utf-8")))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", [page for page in GUIDE if page.stem.startswith("add-")], ids=named)
def test_an_addition_takes_less_than_forty_lines(page: Path) -> None:
    found = blocks(page, "python")
    assert found and all(len(block.text.splitlines()) < 40 for block in found)


def test_the_contents_name_every_page_once() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\(guide/([\w-]+\.md)\)", index)) == [page.name for page in GUIDE]
