"""`hf-captioners convert`: an original checkpoint becomes a folder for `from_pretrained`.

Every source is a sub-command, whose options its module in `hf_captioners.conversion` declares. The module, and torch
with it, is imported when its sub-command is called.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..conversion import SOURCES, find_command
from .common import TRUST_FLAGS, LaterParser, Parser, mistakes

if TYPE_CHECKING:
    from ..conversion.command import Command

_DESCRIPTION = """\
Convert an original checkpoint into a folder that from_pretrained reads: model, generation defaults and processor.
Nothing in the checkpoint is executed. The folder appears complete or not at all; its path is printed as a JSON line.
Pickled document frequencies of CIDEr become a file that evaluate --document-frequencies reads."""

_EPILOG = """\
example:
  hf-captioners convert expansionnet_v2 rf_model.pth --vocabulary demo_coco_tokens.pickle --out expansionnet-v2

hf-captioners convert SOURCE --help lists what a source takes."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the verb `convert` to the command line.

    Args:
        subparsers: what `ArgumentParser.add_subparsers` returned.

    Returns:
        `ArgumentParser`: of the verb; [`run`] is its default `run`.
    """
    parser = subparsers.add_parser(
        "convert",
        help="convert an original checkpoint",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sources = parser.add_subparsers(
        title="sources", metavar="SOURCE", dest="source", required=True, parser_class=LaterParser
    )
    for name, summary in SOURCES.items():
        sources.add_parser(name, help=summary, add_help=False)
    parser.set_defaults(run=run)
    return parser


def build_parser(command: Command) -> argparse.ArgumentParser:
    """Make the parser of a source. What is not given is not in its result.

    Args:
        command ([`~hf_captioners.conversion.command.Command`]): the source.

    Returns:
        `ArgumentParser`
    """
    prog = f"hf-captioners convert {command.name}"
    parser = Parser(
        prog=prog,
        description=f"Convert {SOURCES[command.name]}.",
        epilog=f"example:\n  {prog} {command.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("checkpoint", type=Path, help=command.checkpoint)
    parser.add_argument("--out", type=Path, required=True, metavar=command.out_metavar, help=command.out)
    for name, declaration in command.options.items():
        flags = TRUST_FLAGS if f"--{name}" in TRUST_FLAGS else (f"--{name.replace('_', '-')}",)
        parser.add_argument(*flags, **declaration)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier conversion there")
    return parser


def run(args: argparse.Namespace) -> int:
    """Convert, write the report to stderr and the path to stdout.

    Args:
        args (`Namespace`): `source`, and `words`, its arguments.

    Returns:
        `int`: 0.

    Raises:
        UsageError: what was asked for cannot be done.
    """
    command = find_command(args.source)
    options = vars(build_parser(command).parse_args(args.words))
    checkpoint, out = options.pop("checkpoint"), options.pop("out")
    from transformers.utils import logging

    from ..data.printable import printable

    logging.disable_progress_bar()  # of the files of a folder; that of their bytes is ours
    with mistakes(OSError, ValueError):
        report = command.convert_with(checkpoint, out, options, options.pop("overwrite", False))
    for line in report.lines():
        print(printable(line), file=sys.stderr)
    print(json.dumps(report.written()))
    return 0
