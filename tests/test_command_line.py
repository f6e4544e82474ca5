"""Words to options, errors to one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest

from leaf_diffusion.command_line import ByName, parse, run_command


@dataclass(frozen=True)
class Tool:
    size: int = 1


@dataclass(frozen=True)
class Saw(Tool):
    teeth: int = 5

    def __post_init__(self) -> None:
        if self.teeth < 1:
            raise ValueError(f"--tool.teeth must be at least 1, got {self.teeth}")


def tool(name: str) -> Tool:
    kinds: dict[str, Tool] = {"tool": Tool(), "saw": Saw()}
    if name not in kinds:
        raise ValueError(f"no tool {name!r}")
    return kinds[name]


@dataclass(frozen=True, kw_only=True)
class Shared:
    help_group: ClassVar[str] = "shared things"
    renamed: ClassVar[Mapping[str, str]] = {"--teeth": "--tool.teeth", "--color": "--colour", "--loud": "--noisy"}

    tool: Annotated[Tool, ByName(tool)] = Tool()
    """What is used."""
    noisy: bool = True
    config: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Options(Shared):
    """Do something."""

    help_group: ClassVar[str] = "of its own"
    help_first: ClassVar[tuple[str, ...]] = ("wood", "tool")

    wood: str
    """The wood."""
    colour: Literal["red", "green"] = "red"
    k: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if min(self.k) < 1:
            raise ValueError(
                f"--k must be at least 1, got {min(self.k)} in a sentence that is longer than any line of a terminal"
            )


def made(*argv: str) -> Options:
    return parse(Options, ["--wood", "oak", *argv], command="saw")


def test_what_is_chosen_by_name_has_its_own_parameters() -> None:
    assert made() == Options(wood="oak")
    assert made("--tool", "saw") == made("--tool=saw") == Options(wood="oak", tool=Saw())
    assert made("--tool.teeth", "7", "--tool", "saw") == Options(wood="oak", tool=Saw(teeth=7))
    assert made("--tool.size=3") == Options(wood="oak", tool=Tool(size=3))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--tool.teeth", "7"), r"unrecognized options: --tool\.teeth"),
        (("--tool", "sow"), r"--tool: no tool 'sow'"),
        (("--tool",), "--tool needs a value"),
        (("--tool", "saw", "--tool.teeth", "0"), r"^--tool\.teeth must be at least 1, got 0$"),
        (("--colr", "red"), r"did you mean --colour\?"),
        (("--colour", "gren"), r"did you mean 'green'\?"),
        (("--k", "0"), r"^--k must be at least 1, got 0 in a sentence that is longer than any line of a terminal$"),
        (("--k", "x"), "--k: .*'x'"),
        (("rest",), "unrecognized options: rest"),
    ],
)
def test_what_cannot_be_understood_is_said_in_one_sentence(argv: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        made(*argv)
    assert "\n" not in str(error.value)


def test_a_missing_option_is_named() -> None:
    with pytest.raises(ValueError, match="missing: --wood"):
        parse(Options, [], command="saw")


def test_old_spellings_are_told_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert made("--color", "green", "--no-loud", "--color=red") == Options(wood="oak", noisy=False)
    said = capsys.readouterr().err.splitlines()
    assert said == ["leaf-diffusion saw: --color is now --colour", "leaf-diffusion saw: --loud is now --noisy"]
    assert made("--teeth", "7", "--tool", "saw").tool == Saw(teeth=7)
    assert made("--teeth", "7").tool == Tool(), "what an option cannot set today it did not set before"
    file = tmp_path / "options.yaml"
    file.write_text("color: green\nteeth: 3\ntool: saw\n")
    assert made("--config", str(file)) == Options(wood="oak", colour="green", tool=Saw(teeth=3), config=file)


def test_a_file_holds_options_and_the_command_line_goes_over_it(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("tool: {name: saw, teeth: 3}\nk: [2, 3]\nnoisy: false\nwood: ash\n")
    read = parse(Options, ["--config", str(file)], command="saw")
    assert read == Options(wood="ash", tool=Saw(teeth=3), k=(2, 3), noisy=False, config=file)
    assert made("--config", str(file), "--tool.size", "4", "--k", "1").tool == Saw(teeth=3, size=4)
    assert made("--config", str(file), "--tool", "tool").tool == Tool()
    file.write_text("colour: blue\n")
    with pytest.raises(ValueError, match=r"options\.yaml: invalid choice 'blue'"):
        made("--config", str(file))
    file.write_text("colr: red\n")
    with pytest.raises(ValueError, match=r"options\.yaml: unknown options \['colr'\]; did you mean 'colour'\?"):
        made("--config", str(file))


def test_help_stands_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        made("--tool", "saw", "--help")
    said = capsys.readouterr().out
    first, shared, own = (said.index(each) for each in ("the first you need:", "shared things:", "of its own:"))
    assert said.index("Do something.") < first < said.index("--tool NAME") < said.index("--tool.teeth") < shared
    assert first < said.index("--wood") < shared < said.index("--noisy") < own < said.index("--colour")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("a [red]path[/red] \x1b[2J"), 2, "leaf-diffusion saw: a [red]path[/red] \\x1b[2J\n"),
        (
            FileNotFoundError(2, "No such file", "/tmp/[x]"),
            2,
            "leaf-diffusion saw: [Errno 2] No such file: '/tmp/[x]'\n",
        ),
        (ImportError("no such package"), 2, "leaf-diffusion saw: no such package\n"),
        (KeyboardInterrupt(), 130, "\nleaf-diffusion saw: stopped; the same command goes on from here\n"),
        (SystemExit(0), 0, ""),
        (SystemExit("no"), 1, ""),
    ],
)
def test_errors_are_one_line(error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(argv: Sequence[str]) -> int:
        raise error

    assert run_command("saw", fails, []) == status
    assert capsys.readouterr() == ("", said)


def test_errors_of_our_own_code_keep_their_trace() -> None:
    with pytest.raises(TypeError):
        run_command("saw", lambda argv: len(3), [])  # type: ignore[arg-type]


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        [sys.executable, "-m", "leaf_diffusion", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, b"")
