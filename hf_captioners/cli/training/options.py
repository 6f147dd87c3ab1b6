"""Options of training: dataclasses, read from the command line and from a recipe, which is a YAML file."""

from __future__ import annotations

import argparse
import dataclasses
import reprlib
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser, TrainingArguments

from ..common import TRUST_OPTION, UsageError, mistakes
from ..recipe import read_recipe

_TRUST = TRUST_OPTION.lstrip("-")


class RecipeParser(HfArgumentParser):
    """Parser of dataclasses whose values may also stand in the YAML file of `--config`; the command line wins.

    Where a value is a mapping, the names that the command line gives win, and the recipe's others stay.

    Args:
        dataclass_types (`Sequence[type]`): what to read; the help lists them in this order, with the options of
            `TrainingArguments` at the end.
        prog (`str`): name of the command.
        description (`str`, *optional*): of the command.
    """

    def __init__(self, dataclass_types: Sequence[Any], prog: str, description: str | None = None) -> None:
        self.actions: list[argparse.Action] = []
        super().__init__(
            dataclass_types,
            prog=prog,
            description=description,
            usage=f"{prog} [--config RECIPE.yaml] [--option VALUE ...]",
            allow_abbrev=False,
        )
        self.add_argument("--config", type=Path, metavar="RECIPE.yaml", help="Options in a file; given ones win.")

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As in argparse; the help lists the actions that are noted here."""
        action = super().add_argument(*names, **options)
        self.actions.append(action)
        return action

    def error(self, message: str) -> Any:
        """Raise a mistake on the command line instead of printing two hundred options.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message} (see {self.prog} --help)")

    def format_help(self) -> str:
        """The project's own options first, by subject; those of transformers after them."""
        formatter = self.formatter_class(self.prog)
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        for title, names in self._sections():
            formatter.start_section(title)
            formatter.add_arguments([action for action in self.actions if action.dest in names])
            formatter.end_section()
        return formatter.format_help()

    def _sections(self) -> Iterator[tuple[str, set[str]]]:
        """Titles and the names of their options."""
        inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
        yield "options", {"help", "config"}
        for kind in self.dataclass_types:
            own = {name for base in kind.__mro__ if base is not TrainingArguments for name in _annotations(base)}
            names = {field.name for field in dataclasses.fields(kind)}
            title = (kind.__doc__ or kind.__name__).strip().partition("\n")[0].partition(";")[0]
            yield title.rstrip("."), names & own if issubclass(kind, TrainingArguments) else names
        yield "Options of transformers' TrainingArguments", inherited - own

    def read(self, words: Sequence[str]) -> list[Any]:
        """Read a command line.

        Args:
            words (`Sequence[str]`): the arguments.

        Returns:
            `list`: an object of each dataclass.

        Raises:
            UsageError: an unknown option, or a recipe that cannot be read.
            ValueError: a value that a dataclass refuses.
        """
        recipe = self._recipe(words)
        self.set_defaults(**recipe)
        for action in self.actions:
            action.required = action.required and action.dest not in recipe
        *objects, _, unknown = self.parse_args_into_dataclasses(
            list(words), return_remaining_strings=True, look_for_args_file=False
        )
        if unknown:
            name = unknown[0]
            self.error(f"{name} is no option" + self._advice(name.lstrip("-").partition("=")[0].replace("-", "_")))
        for read in objects:
            for name, value in recipe.items():
                if isinstance(value, dict) and isinstance(vars(read).get(name), dict):
                    setattr(read, name, {**value, **vars(read)[name]})
        return objects

    def _recipe(self, words: Sequence[str]) -> dict[str, Any]:
        """The options of the file that `--config` names."""
        first = argparse.ArgumentParser(self.prog, usage=self.usage, add_help=False, allow_abbrev=False)
        first.add_argument("--config", type=Path)
        path = first.parse_known_args(list(words))[0].config
        if path is None:
            return {}
        recipe = read_recipe(path)
        if recipe.get(_TRUST) and TRUST_OPTION not in {word.replace("-", "_").replace("__", "--", 1) for word in words}:
            raise UsageError(f"{TRUST_OPTION} is not for a recipe; take it out and give it on the command line")
        hints = {name: hint for kind in self.dataclass_types for name, hint in get_type_hints(kind).items()}
        for name, value in recipe.items():
            if name not in self._names():
                raise UsageError(f"--config {path}: {name} is no option of {self.prog}{self._advice(str(name))}")
            try:
                recipe[name] = _fitting(hints[name], value)
            except ValueError as error:
                raise UsageError(f"--config {path}: {name}: {error}") from error
        return recipe

    def _names(self) -> set[str]:
        return {action.dest for action in self.actions} - {"help", "config"}

    def _advice(self, name: str) -> str:
        near = get_close_matches(name, sorted(self._names()), 3)
        return f"; do you mean {' or '.join(near)}?" if near else ""


_IN_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}
_IN_WORDS |= {dict: "names and their values"}


def _fitting(hint: Any, value: Any) -> Any:
    """A value of a recipe as the field wants it: a text alone may be a list, and texts are parsed like words.

    Raises:
        ValueError: it is of another kind.
    """
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = {get_origin(member) or member for member in members}
    if value is None or not kinds & _IN_WORDS.keys():
        return value
    if isinstance(value, str):
        return [value] if list in kinds and str not in kinds else value
    accepted = {float: (float, int), str: (str, int, float)}  # a name may be a number
    fitting = tuple(kind for member in kinds & _IN_WORDS.keys() for kind in accepted.get(member, (member,)))
    if not isinstance(value, fitting) or (isinstance(value, bool) and not kinds & {bool, str}):
        expected = " or ".join(said for kind, said in _IN_WORDS.items() if kind in kinds)
        raise ValueError(f"expected {expected}, not {reprlib.repr(value)}")
    return value


def _annotations(kind: type) -> set[str]:
    """Names of the fields that a class itself declares, of this package alone."""
    return set() if issubclass(TrainingArguments, kind) else set(vars(kind).get("__annotations__", {}))


def read_options(dataclass_types: Sequence[type], words: Sequence[str] | None, prog: str) -> list[Any]:
    """Read the options of a training command.

    Args:
        dataclass_types (`Sequence[type]`): what to read.
        words (`Sequence[str]`, *optional*): by default the process's arguments.
        prog (`str`): name of the command.

    Returns:
        `list`: an object of each dataclass.

    Raises:
        UsageError: an option that cannot be, with its name, or one whose library is missing.
    """
    with mistakes(ValueError, OSError, ImportError):  # OSError: of a file that an option names
        return RecipeParser(dataclass_types, prog).read(sys.argv[1:] if words is None else words)
