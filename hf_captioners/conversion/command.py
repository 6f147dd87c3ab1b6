"""The sub-command of a source, declared by the module that converts it: what it takes, in the words of argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .pickle_limits import show
from .writing import ConversionError, ConversionReport, FrequencyReport

TRUST: Mapping[str, Any] = {
    "action": "store_true",
    "help": "run the Python code that comes with a tokenizer or a CLIP; read it first. That of a checkpoint never runs",
}
"""Declaration of the option `trust_remote_code`."""


@dataclass(frozen=True)
class Command:
    """A source: the function that converts it, and how a command line asks for what that function takes.

    Attributes:
        name (`str`): of the source, which is also its module's name.
        convert (`Callable[..., ConversionReport | FrequencyReport]`): takes the checkpoint, the path to write, the
            options, and `overwrite`.
        checkpoint (`str`): help of the checkpoint.
        example (`str`): arguments of a call.
        options (`Mapping[str, Mapping[str, Any]]`): name of a keyword of `convert` -> what argparse's `add_argument`
            takes. A keyword without default is `required` there. Keywords that a command line does not give are left
            out.
        out (`str`), out_metavar (`str`): help of the path to write, and its name there.

    Example:

    ```python
    >>> from hf_captioners.conversion.satic import COMMAND
    >>> COMMAND.convert_with("model.pth", "satic", {"heads": 4})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    hf_captioners.conversion.writing.ConversionError: heads=4 has no use with satic, whose options are infos (req...

    ```
    """

    name: str
    convert: Callable[..., ConversionReport | FrequencyReport]
    checkpoint: str
    example: str
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    out: str = "folder to write, new or empty; it appears complete or not at all"
    out_metavar: str = "DIR"

    def convert_with(
        self, checkpoint: str | Path, out_dir: str | Path, options: Mapping[str, Any], overwrite: bool = False
    ) -> ConversionReport | FrequencyReport:
        """Convert a checkpoint with options that are checked first.

        Args:
            checkpoint (`str` or `Path`), out_dir (`str` or `Path`), overwrite (`bool`): as in `convert`.
            options (`Mapping[str, Any]`): some of `options`; `None` is the same as none.

        Raises:
            ConversionError: an option that this source does not have, or one that is missing. All options are named.
        """
        values = {name: value for name, value in options.items() if value is not None}
        unknown = [name for name in values if name not in self.options]
        if unknown:
            value = show(values[unknown[0]])
            raise ConversionError(f"{unknown[0]}={value} has no use with {self.name}, {self._known()}")
        for name, declaration in self.options.items():
            if declaration.get("required") and name not in values:
                raise ConversionError(f"{name} is required by {self.name}, {self._known()}: {declaration['help']}")
        return self.convert(checkpoint, out_dir, overwrite=overwrite, **values)

    def _known(self) -> str:
        required = {name for name, declaration in self.options.items() if declaration.get("required")}
        names = [f"{name} (required)" if name in required else name for name in self.options]
        return f"whose options are {', '.join(names)} and overwrite" if names else "whose only option is overwrite"


class _NamedIds(argparse.Action):
    """Collect names and ids in a dict."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        """Set the dict."""
        setattr(namespace, self.dest, dict(values))


def _name_and_id(text: str) -> tuple[str, int]:
    name, separator, number = text.partition("=")
    if not separator or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=ID, such as PAD=78")
    return name, int(number)


NAMED_IDS: Mapping[str, Any] = {"nargs": "+", "type": _name_and_id, "action": _NamedIds, "metavar": "NAME=ID"}
"""Declaration of an option that is a dict of ids, such as `PAD=78 UNK=80`."""
