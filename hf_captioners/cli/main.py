"""`hf-captioners`: the verbs, and what ends a command from outside.

Every verb is a module with `add_parser(subparsers)` and `run(args) -> int`; the modules import torch and what they work
with only in `run`, which raises a `UsageError` for what cannot be done. It is shown here; stdout is data, stderr log.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from ..data.printable import PrintableFormatter
from . import (
    caption,
    convert,
    data,
    demo,
    env,
    evaluate,
    export,
    features,
    guides,
    plot,
    push,
    quickstart,
    regions,
    retrieval,
    scdnet,
    train,
)
from .common import INTERRUPTED, TRACEBACK, Parser, UsageError, needed, report

VERBS = (
    *(quickstart, caption, train, evaluate, data, features, regions, retrieval, guides, scdnet, plot),
    *(convert, export, push, demo, env),
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `args.run` of what it parses is the function to call."""
    parser = Parser(
        prog="hf-captioners",
        description="Caption pictures with research captioners.",
        epilog=f"A mistake is one line and exit status 2, a full disk 3; {TRACEBACK}=1 shows where it comes from.",
    )
    parser.add_argument("--version", action="version", version=f"hf-captioners {_version()}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)
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
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with needed():
            if words[:1] == ["features"]:
                words = features.with_config(words)
            args = build_parser().parse_args(words)
            status: int = args.run(args)
        sys.stdout.flush()
        return status
    except UsageError as error:
        return report(f"hf-captioners {words[0]}", error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
