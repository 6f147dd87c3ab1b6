"""`hf-captioners train`: teach a captioner, by cross-entropy or by rewards."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..extras import require
from .common import LaterParser, exit_with_usage_errors, needed

METHODS = {
    "xe": "cross-entropy on captioned pictures: a new captioner, or one that learns on",
    "scst": "self-critical training of a captioner on rewards",
    "dico": "direct CLIP-based optimisation of a captioner on rewards",
}

_EPILOG = """\
examples:
  hf-captioners train xe --config examples/recipes/expansionnet_v2/own_pictures.yaml --data_dir my_images \\
      --backbone microsoft/swin-tiny-patch4-window7-224 --output_dir runs/mine
  hf-captioners train scst --config recipe.yaml --learning_rate 1e-5
  accelerate launch --num_processes 2 -m hf_captioners train dico --config examples/recipes/dico/2_dico.yaml

hf-captioners train METHOD --help lists the options of a method. Each may stand in the recipe, a YAML file."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb `train` to the command line.

    Args:
        subparsers: what `ArgumentParser.add_subparsers` returned.

    Returns:
        `ArgumentParser`: of the verb; [`run`] is its default `run`.
    """
    parser = subparsers.add_parser(
        "train",
        help="train a captioner by cross-entropy or rewards",
        description="Train a captioner. The result is a folder that all other verbs take as --model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_methods(parser, METHODS)
    parser.set_defaults(run=run)
    return parser


def add_methods(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add methods as sub-commands: `method` is the name, and `words` are its options, to be read later.

    Args:
        parser (`ArgumentParser`): of the command.
        names (`Iterable[str]`): keys of `METHODS`.
    """
    methods = parser.add_subparsers(
        title="methods", metavar="METHOD", dest="method", required=True, parser_class=LaterParser
    )
    for name in names:
        methods.add_parser(name, help=METHODS[name], add_help=False)


def run(args: argparse.Namespace) -> int:
    """Train what the options say.

    Args:
        args (`Namespace`): `method` and `words`, its options.

    Returns:
        `int`: 0.

    Raises:
        UsageError: what was asked for cannot be done.
    """
    _train(args.method, args.words, f"hf-captioners train {args.method}")
    return 0


def train_example(method: str, words: Sequence[str] | None = None, model_type: str | None = None) -> None:
    """Train what a command line describes, as a script that ends with the status 2 and one line after a mistake.

    Args:
        method (`str`): a key of `METHODS`.
        words (`Sequence[str]`, *optional*): its options; by default the process's arguments.
        model_type (`str`, *optional*): of the only captioners that it trains.

    Raises:
        SystemExit: a mistake, Ctrl-C, or training that has collapsed.
    """
    prog = Path(sys.argv[0]).name
    with exit_with_usage_errors(prog):
        _train(method, words, prog, model_type)


def _train(method: str, words: Sequence[str] | None, prog: str, model_type: str | None = None) -> None:
    with needed("train"):
        require("accelerate", "datasets", "yaml")  # transformers says less
        from .training.script import train_captioner

        train_captioner(method, words, prog, model_type)
