from importlib import import_module

import pytest

from leaf_diffusion import __version__
from leaf_diffusion.cli.main import COMMANDS, GROUPS, main


def test_every_command_has_its_function() -> None:
    for target, _ in COMMANDS.values():
        module, function = target.split(":")
        assert callable(getattr(import_module(module), function))


def test_every_command_stands_in_one_group() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert main([]) == 2


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evalaute"]) == 2
    error = capsys.readouterr().err
    assert "'evalaute'; did you mean 'evaluate'?" in error
    assert all(name in error for name in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        ["attack", "--prompts", "no/such/file.txt"],
        ["finetune", "--source", "world:original", "--captions", "no/such/file.txt", "--output", "nowhere"],
    ],
    ids=lambda words: words[0],
)
def test_an_error_that_the_user_can_mend_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    shown = "".join(capsys.readouterr())
    assert "no/such/file.txt" in shown
    assert "Traceback" not in shown
    assert len(shown.splitlines()) == 1
