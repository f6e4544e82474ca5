"""docs/options.md names every old spelling that works, and no other; what it names as new exists."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from leaf_diffusion import _spelling, command_line
from leaf_diffusion.cli import main as cli

PAGE = (Path(__file__).parents[1] / "docs" / "options.md").read_text(encoding="utf-8")
OLD, NEW = (PAGE.partition(title)[2].partition("\n## ")[0] for title in ("\n## Old spellings", "\n## New options"))


def rows(section: str) -> list[list[list[str]]]:
    """The lines of a table; of each cell what stands in `code`."""
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return [[re.findall(r"`([^`]+)`", cell) for cell in line] for line in lines]


@pytest.fixture(scope="module")
def known() -> dict[str, tuple[dict[str, str], set[str]]]:
    """Command -> its old spellings that still work, with the new ones, and its options."""
    found: dict[str, tuple[dict[str, str], set[str]]] = {}

    class Recorded(_spelling.Speller):
        def __init__(self, command: str, options: Mapping[str, _spelling.Option], old: Mapping[str, str]) -> None:
            working = {before: after for before, after in old.items() if before[2:] not in options}
            found[command] = working, {f"--{name}" for name in options}
            super().__init__(command, options, old)

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()):
        patch.setattr(command_line, "Speller", Recorded)
        for name in [each for each in cli.COMMANDS if each != "world"] + ["world build", "world show"]:
            assert cli.main([*name.split(), "--help"]) == 0
    return found


def test_the_table_of_old_spellings_is_complete_and_true(known: dict[str, tuple[dict[str, str], set[str]]]) -> None:
    said = {(command, old, new) for commands, [old], [new] in rows(OLD) for command in commands}
    assert said == {(name, *pair) for name, (renamed, _) in known.items() for pair in renamed.items()}


def test_new_spellings_and_options_exist(known: dict[str, tuple[dict[str, str], set[str]]]) -> None:
    def exists(option: str, options: Collection[str]) -> bool:
        return option.partition(".")[0] in options

    for commands, *_, options in [*rows(OLD), *([commands, options] for commands, options, _ in rows(NEW))]:
        assert commands and options
        assert all(exists(option, known[command][1]) for command in commands for option in options), (commands, options)
