"""Command lines: from words to typed options, and from errors to one line and an exit status.

Options are frozen dataclasses. Three class variables of an options class, or of one that it inherits from or holds, are read
here: `help_group` (the heading in `--help` of the fields that the class declares), `help_first` (names of the fields that a
beginner needs, shown first) and `renamed` (old spelling -> new spelling).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import TypeVar

import tyro

from leaf_diffusion._help import grouped, plain_error
from leaf_diffusion._spelling import ByName, Renamed, Speller, did_you_mean, known_options, old_spellings, yaml_words

__all__ = ["ByName", "did_you_mean", "parse", "printable", "refuse_idle", "run_command"]

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def parse(options_type: type[T], argv: Sequence[str] | None, *, command: str, renamed: Renamed | None = None) -> T:
    """The options of a command line: defaults < `--config file.yaml` (where there is such a field) < `argv`.

    Old spellings (`renamed` and those of the options class) are understood, with one line on stderr that names the new one.
    Raises ValueError for what cannot be understood, OSError for a configuration that cannot be read, SystemExit(0) after
    `--help`.
    """
    speller = Speller(command, known_options(options_type), old_spellings(options_type) | dict(renamed or {}))
    words = speller.renew(sys.argv[1:] if argv is None else argv)
    config = _last(words, "--config") if "config" in speller.options else None
    if config is None:
        return _parse(options_type, words, speller)
    given = yaml_words(Path(config), speller)
    chosen = [f"--{name}" for name, option in speller.options.items() if option.by_name and _last(words, f"--{name}")]
    kept = [word for word in given if not any(word.startswith((f"{flag}=", f"{flag}.")) for flag in chosen)]
    try:
        return _parse(options_type, [*kept, *words], speller)
    except ValueError as error:
        try:
            _parse(options_type, given, speller)
        except ValueError as alone:
            if str(alone) == str(error):
                raise ValueError(f"{config}: {error}") from error
        raise


def run_command(command: str, function: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: what the user can mend is one line on stderr and status 2.

    Ctrl-C is 130, a closed pipe (`| head`) 141 and quiet.
    """
    try:
        try:
            status = function(sys.argv[1:] if argv is None else argv)
        except SystemExit as stopped:  # --help
            status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # what is still buffered has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError) as error:
        print(f"leaf-diffusion {command}: {printable(str(error) or type(error).__name__)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nleaf-diffusion {command}: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def refuse_idle(options: DataclassInstance, why: str, *names: str) -> None:
    """ValueError where one of these options was given (is not its default) although nothing would read it. why: how the
    sentence that begins with the option's name goes on."""
    for each in dataclasses.fields(options):
        if each.name in names and getattr(options, each.name) != each.default:
            raise ValueError(f"--{each.name.replace('_', '-')} {why}: it would do nothing here, leave it out")


def printable(text: str) -> str:
    """`text` with codes for what would command a terminal; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _last(words: Sequence[str], flag: str) -> str | None:
    """The value that is given to `flag` last."""
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word.startswith(f"{flag}="):
            found = word.partition("=")[2]
        elif word == flag:
            found = following
    return found


def _parse(options_type: type[T], words: Sequence[str], speller: Speller) -> T:
    """Options of words in today's spellings."""
    left, chosen = list(words), dict[str, object]()
    for flag, option in speller.options.items():
        if option.by_name is None:
            continue
        name = flag.replace("-", "_")
        left, text = _taken(left, f"--{flag}")
        value = getattr(options_type, name, None)
        if text is not None:
            try:
                value = chosen[name] = option.by_name.from_text(text)
            except ValueError as error:
                raise ValueError(f"--{flag}: {error}") from error
        known = [f"--{flag}.{each.replace('_', '-')}=" for each in _fields(value)]
        left = [word for word in left if word not in speller.uncertain or word.startswith(tuple(known))]
    if not chosen:
        return _told(options_type, left, speller)
    hints = {name: speller.options[name.replace("_", "-")].hint for name in chosen}
    fields = [(name, hints[name], field(default=value, kw_only=True)) for name, value in chosen.items()]
    with_defaults: type[DataclassInstance] = dataclasses.make_dataclass(
        options_type.__name__, fields, bases=(options_type,), frozen=True
    )
    with_defaults.__doc__ = options_type.__doc__
    options = _told(with_defaults, left, speller)
    return options_type(**{each.name: getattr(options, each.name) for each in dataclasses.fields(options_type)})


def _fields(value: object) -> list[str]:
    return [each.name for each in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []


def _taken(words: Sequence[str], flag: str) -> tuple[list[str], str | None]:
    """`words` without `flag` and its values, and the last value."""
    left, found, rest = list[str](), None, list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith(f"{flag}="):
            found = word.partition("=")[2]
        elif word == flag:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"{flag} needs a value")
            found = rest.pop(0)
        else:
            left.append(word)
    return left, found


def _told(options_type: type[T], words: Sequence[str], speller: Speller) -> T:
    """What tyro makes of the words; its boxes become a help in groups and ValueErrors."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return tyro.cli(options_type, args=list(words), prog=f"leaf-diffusion {speller.command}")
    except SystemExit as stopped:
        if stopped.code in (0, None):
            first = getattr(options_type, "help_first", ())
            groups = {flag: getattr(option.owner, "help_group", "options") for flag, option in speller.options.items()}
            print(grouped(out.getvalue(), {**groups, **{name.replace("_", "-"): "first" for name in first}}))
            raise
        cause: BaseException | None = stopped
        while cause is not None and not isinstance(cause, ValueError):
            cause = cause.__context__
        raise ValueError(plain_error(err.getvalue(), cause, list(speller.options))) from None
