"""`hf-captioners plot`: charts of what training runs logged, several runs over each other.

stdout has the path of the file; messages go to stderr. Exit status 0, or 2 if there is nothing to draw or no place to
draw it to.
"""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .common import UsageError, mistakes, positive

if TYPE_CHECKING:
    from ..reports.run_plots import RunLog

_NAME = "training.png"

_EPILOG = """\
examples:
  hf-captioners plot runs/scst
  hf-captioners plot runs/scst runs/dico --out scst_dico.svg --keys reward 'eval_*' 'completions/*'"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "plot",
        help="draw what training runs logged",
        description="Draw the losses, rewards, lengths, scores, ... that a Trainer logged, over the optimizer steps.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="output folder of a run, a checkpoint, or a trainer_state.json"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f".png, .svg or .pdf (default, of one run: RUN/{_NAME})"
    )
    parser.add_argument(
        "--smooth", type=positive, metavar="N", help="draw means of N logs; 1 for none (default: a 25th of the logs)"
    )
    parser.add_argument(
        "--keys", nargs="+", metavar="NAME", help="only values logged under these names, such as reward or 'eval_*'"
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Draw the charts; returns the exit status."""
    from ..data.printable import printable

    # stdout is for the path, whatever a library has to say
    with mistakes(ValueError, OSError, ImportError), contextlib.redirect_stdout(sys.stderr):
        path = _plot(args)
    print(printable(path) if sys.stdout.isatty() else path)
    return 0


def _plot(args: argparse.Namespace) -> Path:
    from ..reports.run_plots import plot_runs, read_run

    if args.out is None and len(args.runs) > 1:
        raise UsageError("several runs go into one file; say which with --out")
    runs = [read_run(path) for path in args.runs]
    path: Path = runs[0].folder / _NAME if args.out is None else args.out
    plot_runs(_told_apart(runs), path, smooth=args.smooth, keys=args.keys)
    return path


def _told_apart(runs: "list[RunLog]") -> "list[RunLog]":
    """Put as much of their paths in front of runs of the same name as tells them apart."""
    from dataclasses import replace

    names, parts = [run.name for run in runs], [run.folder.resolve().parts for run in runs]
    for length in range(2, max(map(len, parts)) + 1):
        paths = ["/".join(folders[-length:]) for folders in parts]
        names = [long if names.count(name) > 1 else name for name, long in zip(names, paths, strict=True)]
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
