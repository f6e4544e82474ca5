"""Command lines: from words to typed options, and from errors to one line and an exit status.

Options are frozen dataclasses. Three class variables of an options class, or of one that it inherits from or holds, are read
here: `help_group` (the heading in `--help` of the fields that the class declares), `help_first` (names of the fields that a
beginner needs, shown first) and `renamed` (old spelling -> new spelling).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import io
import os
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import tyro
import yaml

from leaf_diffusion._help import grouped, plain_error

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
Renamed = Mapping[str, str]


@dataclass(frozen=True)
class ByName:
    """Annotation of a field whose value is a dataclass chosen by name, such as an attack: `--attack leaf` or
    `--attack leaf:rho=20` chooses, `--attack.rho 20` sets a parameter of what is chosen.

    `from_text` makes the value of the text; ValueError says what is wrong.
    """

    from_text: Callable[[str], object]


@dataclass(frozen=True)
class _Option:
    """A field as the command line knows it; `owner` is the class that declares it first."""

    owner: type
    hint: object
    switch: bool
    by_name: ByName | None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'charmer'?" for the known word closest to `word`, "" where none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def parse(options_type: type[T], argv: Sequence[str] | None, *, command: str, renamed: Renamed | None = None) -> T:
    """The options of a command line: defaults < `--config file.yaml` (where there is such a field) < `argv`.

    Old spellings (`renamed` and those of the options class) are understood, with one line on stderr that names the new one.
    Raises ValueError for what cannot be understood, OSError for a configuration that cannot be read, SystemExit(0) after
    `--help`.
    """
    speller = _Speller(command, _options(options_type), _renamed(options_type) | dict(renamed or {}))
    words = speller.renew(sys.argv[1:] if argv is None else argv)
    config = _last(words, "--config") if "config" in speller.options else None
    if config is None:
        return _parse(options_type, words, speller)
    given = _yaml_words(Path(config), speller)
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


def printable(text: str) -> str:
    """`text` with codes for what would command a terminal; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _options(options_type: type[DataclassInstance]) -> dict[str, _Option]:
    """Every option by its flag without dashes; fields of a nested dataclass whose prefix is left out are options, too."""
    found: dict[str, _Option] = {}
    hints = typing.get_type_hints(options_type, include_extras=True)
    owners = {name: cls for cls in options_type.__mro__ for name in inspect.get_annotations(cls)}
    for name in (each.name for each in dataclasses.fields(options_type)):
        hint = hints[name]
        base, *notes = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
        by_name = next((note for note in notes if isinstance(note, ByName)), None)
        if by_name is None and isinstance(base, type) and dataclasses.is_dataclass(base):
            found |= _options(base)
        else:
            found[name.replace("_", "-")] = _Option(owners[name], hint, base is bool, by_name)
    return found


def _renamed(options_type: type[DataclassInstance]) -> dict[str, str]:
    owners = {option.owner for option in _options(options_type).values()} | set(options_type.__mro__)
    return {old: new for owner in owners for old, new in owner.__dict__.get("renamed", {}).items()}


def _last(words: Sequence[str], flag: str) -> str | None:
    """The value that is given to `flag` last."""
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word.startswith(f"{flag}="):
            found = word.partition("=")[2]
        elif word == flag:
            found = following
    return found


@dataclass
class _Speller:
    """The spellings that a command knows, old ones too. `uncertain`: words of old spellings that set a parameter of
    something chosen by name, which may be another thing today."""

    command: str
    options: Mapping[str, _Option]
    old: Renamed
    told: set[str] = field(default_factory=set)
    uncertain: set[str] = field(default_factory=set)

    def renew(self, words: Sequence[str]) -> list[str]:
        """`words` in today's spellings."""
        renewed, rest = list[str](), list(words)
        while rest:
            flag, equals, value = (word := rest.pop(0)).partition("=")
            if not flag.startswith("--"):
                renewed.append(word)
                continue
            flag = flag.replace("_", "-")
            new = self.new(flag)
            if new is not None and "." in new:
                word = f"{new}={value if equals else rest.pop(0) if rest else ''}"
                self.uncertain.add(word)
                renewed.append(word)
            else:
                renewed.append((new or flag) + equals + value)
        return renewed

    def new(self, flag: str) -> str | None:
        """The new spelling of an old one, which is told once."""
        no, old = ("--no-", f"--{flag[5:]}") if flag.startswith("--no-") else ("--", flag)
        if old not in self.old or old[2:] in self.options:
            return None
        if old not in self.told:
            print(f"leaf-diffusion {self.command}: {old} is now {self.old[old]}", file=sys.stderr)
            self.told.add(old)
        return no + self.old[old][2:]


def _parse(options_type: type[T], words: Sequence[str], speller: _Speller) -> T:
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


def _told(options_type: type[T], words: Sequence[str], speller: _Speller) -> T:
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


def _yaml_words(path: Path, speller: _Speller) -> list[str]:
    """The options of a YAML file as words; ValueError names unknown ones and values that are no values."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no YAML that can be read: {' '.join(str(error).split())[:300]}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of options, got a {type(values).__name__}")
    known = {flag.replace("-", "_") for flag in speller.options} | {old[2:].replace("-", "_") for old in speller.old}
    if wrong := [name[:40] if isinstance(name, str) else type(name).__name__ for name in values if name not in known]:
        today = [flag.replace("-", "_") for flag in speller.options]
        raise ValueError(
            f"{path}: unknown options {wrong[:12]}{did_you_mean(wrong[0], today)}; known: {', '.join(today)}"
        )
    words: list[str] = []
    for name, value in sorted(values.items(), key=lambda item: isinstance(item[1], list)):
        flag = (speller.new(f"--{name.replace('_', '-')}") or f"--{name.replace('_', '-')}")[2:]
        option = speller.options.get(flag)
        if option is not None and option.by_name and isinstance(value, dict):
            words += [f"--{flag}={value.get('name', '')}"] if "name" in value else []
            for each in value.keys() - {"name"}:
                words += _words(f"{flag}.{each}", value[each], path, switch=True)
        else:
            made = _words(flag, value, path, switch=option is not None and option.switch)
            speller.uncertain |= set(made) if "." in flag else set()
            words += made
    return words


def _words(name: str, value: object, path: Path, *, switch: bool) -> list[str]:
    """A value of a file as the command line spells it."""
    flag = name.replace("_", "-")
    if switch and isinstance(value, bool):
        head, dot, last = flag.rpartition(".")
        return [f"--{flag}" if value else f"--{head}{dot}no-{last}"]
    # only plain values: aliases of aliases (&a [*a, *a]) would be written out, twice as long at each level
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, (dict, list, tuple, set, bytes)) for item in items):
        raise ValueError(f"{path}: {name} takes a value or a list of values, no deeper structure")
    try:
        words = [str(item) for item in items]
    except ValueError as error:  # a hexadecimal number of thousands of digits
        raise ValueError(f"{path}: {name}: {error}") from error
    if isinstance(value, list) and any(isinstance(item, str) and item.startswith("-") for item in items):
        raise ValueError(f"{path}: {name} holds a text that begins with -, which would be read as an option: {words}")
    return [f"--{flag}", *words] if isinstance(value, list) else [f"--{flag}={words[0]}"]
