"""`hf-captioners features`: image features of a captioned dataset, computed once for training.

stdout has one JSON line at the end: `{"folder", "count", "added", "errors", "bytes"}`; progress and warnings go to
stderr. Exit status 0 if every picture has features, 1 if some could not be read (named on stderr and in `index.json`),
2 if nothing could be done because of what was asked for.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Named again here because the modules that own them import torch and datasets, too much for `--help`.
SPLITS = ("train", "restval", "val", "test")
DTYPES = ("float16", "bfloat16", "float32")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "features",
        help="compute the image features of a dataset once, for training",
        description="Run the backbone of a captioner, or any vision backbone of transformers, over all pictures of a "
        "dataset and store their features. An interrupted run continues where it was.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of these options; the command line wins")
    parser.add_argument("--model", required=True, help="folder or Hub name of a captioner or a vision backbone")
    parser.add_argument("--annotations", required=True, help="JSON file in Karpathy's layout, plain or gzipped")
    parser.add_argument("--image-root", required=True, help="folder of the pictures: ROOT/[filepath/]filename")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="default: all")
    parser.add_argument("--missing", choices=("error", "drop"), default="error", help="if image files are missing")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="precision in the store (%(default)s)")
    parser.add_argument("--batch-size", type=_positive, default=16, help="pictures at a time (%(default)s)")
    parser.add_argument("--num-workers", type=_count, default=0, help="processes that read pictures (%(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    parser.add_argument("--shard-size-mb", type=_positive, default=500, help="size of a file (%(default)s)")
    parser.set_defaults(run=run)
    return parser


def with_config(argv: Sequence[str]) -> list[str]:
    """Replace `--config FILE` by the options of that YAML file, in front of the others: the command line wins.

    They are then parsed like those of the command line, with the same checks and messages.

    Args:
        argv (`Sequence[str]`): the verb and its arguments.

    Returns:
        `list[str]`: without `--config`.

    Raises:
        ValueError: the file cannot be read or is no mapping of options.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config")
    known, (verb, *given) = parser.parse_known_args(argv)
    if known.config is None:
        return list(argv)
    import yaml

    try:
        options = yaml.safe_load(Path(known.config).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--config {known.config}: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise ValueError(f"--config {known.config}: must be lines of `option: value`")
    words = [verb]
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{str(name).replace('_', '-')}", *map(str, values)]
    return [*words, *given]


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _positive(text: str) -> int:
    if _count(text) == 0:
        raise argparse.ArgumentTypeError("expected 1 or more")
    return _count(text)


def run(args: argparse.Namespace) -> int:
    """Compute the features; returns the exit status."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the summary, whatever a library has to say
            summary = _extract(args)
    except (ValueError, OSError, ImportError) as error:  # ImportError: `datasets` is an extra
        message = " ".join(str(error).split())
        print(f"hf-captioners features: error: {message}", file=sys.stderr)
        return 2
    print(json.dumps(summary))
    return 1 if summary["errors"] else 0


def _extract(args: argparse.Namespace) -> dict[str, Any]:
    from ..data.feature_store import DTYPES as TORCH_DTYPES
    from ..data.karpathy import load_karpathy
    from ..inference.extract_features import FeatureExtractor, write_features

    dataset = load_karpathy(args.annotations, args.image_root, "+".join(args.splits), missing=args.missing)
    summary = write_features(
        FeatureExtractor.from_pretrained(args.model, args.device),
        dataset,
        args.out,
        batch_size=args.batch_size,
        dtype=TORCH_DTYPES[args.dtype],
        shard_bytes=args.shard_size_mb * 1_000_000,
        num_workers=args.num_workers,
    )
    return {
        "folder": summary.folder,
        "count": summary.count,
        "added": summary.added,
        "errors": len(summary.errors),
        "bytes": summary.num_bytes,
    }
