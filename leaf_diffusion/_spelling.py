"""The options that a command knows, by their spellings of today and of before, and a YAML file of them as words."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

Renamed = Mapping[str, str]


@dataclass(frozen=True)
class ByName:
    """Annotation of a field whose value is a dataclass chosen by name, such as an attack: `--attack leaf` or
    `--attack leaf:rho=20` chooses, `--attack.rho 20` sets a parameter of what is chosen.

    `from_text` makes the value of the text; ValueError says what is wrong.
    """

    from_text: Callable[[str], object]


@dataclass(frozen=True)
class Option:
    """A field as the command line knows it; `owner` is the class that declares it first."""

    owner: type
    hint: object
    switch: bool
    by_name: ByName | None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'charmer'?" for the known word closest to `word`, "" where none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def known_options(options_type: type[DataclassInstance]) -> dict[str, Option]:
    """Every option by its flag without dashes; fields of a nested dataclass whose prefix is left out are options, too."""
    found: dict[str, Option] = {}
    hints = typing.get_type_hints(options_type, include_extras=True)
    owners = {name: cls for cls in options_type.__mro__ for name in inspect.get_annotations(cls)}
    for name in (each.name for each in dataclasses.fields(options_type)):
        hint = hints[name]
        base, *notes = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
        by_name = next((note for note in notes if isinstance(note, ByName)), None)
        if by_name is None and isinstance(base, type) and dataclasses.is_dataclass(base):
            found |= known_options(base)
        else:
            found[name.replace("_", "-")] = Option(owners[name], hint, base is bool, by_name)
    return found


def old_spellings(options_type: type[DataclassInstance]) -> dict[str, str]:
    owners = {option.owner for option in known_options(options_type).values()} | set(options_type.__mro__)
    return {old: new for owner in owners for old, new in owner.__dict__.get("renamed", {}).items()}


@dataclass
class Speller:
    """The spellings that a command knows, old ones too. `uncertain`: words of old spellings that set a parameter of
    something chosen by name, which may be another thing today."""

    command: str
    options: Mapping[str, Option]
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


def yaml_words(path: Path, speller: Speller) -> list[str]:
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
