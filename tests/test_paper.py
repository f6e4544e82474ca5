"""docs/paper.md names tests and commands that exist."""

import re
from pathlib import Path

from leaf_diffusion.cli.main import COMMANDS
from leaf_diffusion.metrics.bounds import under_attack

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


def test_the_tests_it_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 10
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), (path, name)


def test_figures_of_a_search_are_called_what_they_are() -> None:
    for page in (PAGE, (ROOT / "README.md").read_text(encoding="utf-8")):
        assert under_attack() in " ".join(page.split())


def test_the_commands_it_names_exist() -> None:
    named = re.findall(r"`leaf-diffusion ([\w-]+)", PAGE)
    assert named and set(named) <= COMMANDS.keys()
