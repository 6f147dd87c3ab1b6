"""Helpers of several verbs: checked numbers, options of captioning, and mistakes of the user."""

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ..extras import explained

DTYPES = ("auto", "float32", "bfloat16", "float16")
MODEL_HELP = "folder or Hub name of a captioner; several, of one kind and vocabulary, caption together as an ensemble"
TRUST_OPTION = "--trust_remote_code"
TRUST_FLAGS = (TRUST_OPTION, TRUST_OPTION.replace("_", "-"))
TRUST_HELP = "run the Python code that comes with a model; read it first. A recipe cannot say this"


@dataclass(kw_only=True)
class TrustArguments:
    """`--trust_remote_code`, of every example: whether code that comes with a model may run."""

    trust_remote_code: bool = field(default=False, metadata={"help": TRUST_HELP})


class UsageError(Exception):
    """Error for what was asked for and cannot be done; the message is for the user."""


TRACEBACK = "HF_CAPTIONERS_TRACEBACK"
"""Environment variable: with `1` the traceback of a mistake is shown before its line, by all verbs and examples."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell has it."""

DISK_IS_FULL = 3
"""Exit status of all verbs when there was no space for a file."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def failure_status(error: BaseException) -> int:
    """The exit status of a verb that could not do what was asked for: 3 if a disk is full, 2 otherwise."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return DISK_IS_FULL
        cause = cause.__cause__
    return 2


class Parser(argparse.ArgumentParser):
    """Parser of the command and of every verb: a mistake is shown without what a terminal would obey."""

    def error(self, message: str) -> NoReturn:
        """Print a mistake and exit, as argparse does."""
        from ..data.printable import printable

        super().error(printable(message))


class LaterParser(argparse.ArgumentParser):
    """Parser of a sub-command that keeps all words as `words`, for a parser that is costly to build."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        """Take the words as they are."""
        return argparse.Namespace(words=list(args or [])), []


@contextmanager
def mistakes(*kinds: type[Exception]) -> Iterator[None]:
    """Take errors of these kinds for mistakes of the user.

    Args:
        kinds (`type[Exception]`): such as `ValueError`.

    Raises:
        UsageError: in their place.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of stdout is gone
        raise
    except kinds as error:
        raise UsageError(str(explained(error) if isinstance(error, ImportError) else error)) from error


@contextmanager
def needed(extra: str | None = None) -> Iterator[None]:
    """Say which extra of the package has a library that is missing.

    Args:
        extra (`str`, *optional*): such as `"train"`; by default the smallest that has the library.

    Raises:
        UsageError: in the place of an `ImportError` about a library of an extra.
    """
    try:
        yield
    except ImportError as error:
        if "pip install" not in str(explained(error)):
            raise
        raise UsageError(str(explained(error, extra))) from error


@contextmanager
def exit_with_usage_errors(prog: str) -> Iterator[None]:
    """End the process after a mistake of the user or Ctrl-C, with one line on stderr at most, and its status.

    Args:
        prog (`str`): name of the command.

    Raises:
        SystemExit: in the place of a `UsageError` or of a `KeyboardInterrupt`.
    """
    try:
        yield
    except UsageError as error:
        stop = SystemExit(str(error))
        stop.code = report(prog, error)  # a number, so that the message is not printed once more
        raise stop from error
    except KeyboardInterrupt as error:
        raise SystemExit(INTERRUPTED) from error


def report(prog: str, error: UsageError) -> int:
    """Show a mistake of the user on stderr: a line, behind its traceback if `HF_CAPTIONERS_TRACEBACK=1`.

    Args:
        prog (`str`): name of the command.
        error ([`UsageError`]): the mistake.

    Returns:
        `int`: the exit status.
    """
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        traceback.print_exception(error)
    print_error(prog, error)
    return failure_status(error)


def check_file(option: str, path: Path) -> None:
    """Check, before the work is done, that a file can be written.

    Args:
        option (`str`): that names it, without dashes.
        path (`Path`): the file.

    Raises:
        UsageError: it is a folder, or its folder does not exist or may not be written.
    """
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir():
        raise UsageError(f"--{option} {path}: expected a file in a folder that exists")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"--{option} {path}: its folder may not be written")


def refuse_unread(where: str, **given: bool) -> None:
    """Refuse options that would be without effect.

    Args:
        where (`str`): what does not read them, for the message.
        given (`bool`): by the name of an option whether it was given.

    Raises:
        UsageError: naming them.
    """
    names = [f"--{name.replace('_', '-')}" for name, is_given in given.items() if is_given]
    if names:
        raise UsageError(f"{', '.join(names)} without effect: {where}; leave out what is not meant")


def print_error(prog: str, error: object) -> None:
    """A line on stderr, without what a terminal would obey in names of files."""
    from ..data.printable import printable

    print(f"{prog}: error: {printable(' '.join(str(error).split()))}", file=sys.stderr)


def count(text: str) -> int:
    """A whole number of 0 or more, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def add_model_options(parser: argparse._ActionsContainer) -> None:
    """`--batch-size`, `--num-beams`, `--max-new-tokens`, `--device`, `--dtype`, `--trust_remote_code`: how one runs."""
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="pictures at a time (%(default)s)")
    parser.add_argument("--num-beams", type=positive, metavar="N", help="width of the beam search (the model's)")
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="longest caption (the model's)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="precision (auto: as the model was saved)")
    add_trust_option(parser)


def add_trust_option(parser: argparse._ActionsContainer) -> None:
    """`--trust_remote_code`, of every verb that loads models."""
    parser.add_argument(*TRUST_FLAGS, action="store_true", help=TRUST_HELP)
