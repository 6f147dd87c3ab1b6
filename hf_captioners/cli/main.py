"""`hf-captioners`: the verbs, and what ends a command from outside.

Every verb is a module with `add_parser(subparsers)` and `run(args) -> int`; the modules import torch and what they work
with only in `run`. stdout is data, stderr is log.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from ..data.printable import PrintableFormatter, printable
from . import caption, convert, env, evaluate, features, plot, quickstart, regions

VERBS = (quickstart, caption, evaluate, features, regions, plot, convert, env)


class _Parser(argparse.ArgumentParser):
    """Parser of the command and of every verb: a mistake is shown without what a terminal would obey."""

    def error(self, message: str) -> NoReturn:
        """Print a mistake and exit, as argparse does."""
        super().error(printable(message))


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `args.run` of what it parses is the function to call."""
    parser = _Parser(prog="hf-captioners", description="Caption pictures with research captioners.")
    parser.add_argument("--version", action="version", version=f"hf-captioners {_version()}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_parser(subparsers)
    return parser


def _version() -> str:
    try:
        return version("hf_captioners")
    except PackageNotFoundError:
        return "(not installed)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv (`Sequence[str]`, *optional*): the arguments; by default those of the process.

    Returns:
        `int`: the exit status: the verb's (0, or 1 if some of the work failed, or 2 after a mistake in the arguments),
        130 after Ctrl-C, 141 if the reader of stdout is gone (`| head`).
    """
    if logging.lastResort is not None:  # shows warnings where no log is set up, as here
        logging.lastResort.setFormatter(PrintableFormatter())
    parser, words = build_parser(), list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["features"]:
        try:
            words = features.with_config(words)
        except ValueError as error:
            parser.error(str(error))
    args = parser.parse_args(words)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
