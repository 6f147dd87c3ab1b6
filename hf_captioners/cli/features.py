"""`hf-captioners features`: image features of a captioned dataset, computed once for training.

They come from a backbone (`--model`) or from the files of a detector (`--regions`).

stdout has one JSON line at the end: `{"folder", "count", "added", "errors", "bytes"}`; progress and warnings go to
stderr. Exit status 0 if every picture has features, 1 if some could not be read (named on stderr and in `index.json`),
2 if nothing could be done because of what was asked for, 3 if a disk is full; the same command then goes on.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import add_trust_option, count, failure_status, positive, print_error

# Named again here because the modules that own them import torch and datasets, too much for `--help`.
SPLITS = ("train", "restval", "val", "test")
DTYPES = ("float16", "bfloat16", "float32")

NORMS = ("none", "l2")

OF_PICTURES = (
    "model",
    "annotations",
    "data_dir",
    "image_root",
    "splits",
    "tokens",
    "missing",
    "batch_size",
    "num_workers",
    "device",
    "trust_remote_code",
)
OF_REGIONS = ("boxes", "image_sizes", "norm")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "features",
        help="compute the image features of a dataset once, for training",
        description="Run the backbone of a captioner, or any vision backbone of transformers, over all pictures of a "
        "dataset and store their features; or store the region features of a detector, which other projects keep in "
        "folders of .npz files or in HDF5. An interrupted run continues where it was.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of these options; the command line wins")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="precision in the store (%(default)s)")
    parser.add_argument("--shard-size-mb", type=positive, default=500, help="size of a file (%(default)s)")
    _add_picture_options(parser.add_argument_group("features that a backbone computes"))
    _add_region_options(parser.add_argument_group("region features in their place"))
    defaults = {name: parser.get_default(name) for name in (*OF_PICTURES, *OF_REGIONS)}
    parser.set_defaults(run=run, defaults=defaults)
    return parser


def _add_picture_options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--model", help="folder or Hub name of a captioner, a vision backbone or a CLIP")
    group.add_argument("--annotations", help="JSON file in Karpathy's layout, plain or gzipped")
    group.add_argument("--image-root", help="folder of the pictures: ROOT/[filepath/]filename")
    group.add_argument(
        "--data-dir",
        "--data_dir",
        metavar="DIR",
        help="instead of these two: a folder as training reads it, with train/ and validation/",
    )
    group.add_argument("--splits", nargs="+", metavar="SPLIT", help=f"some of {', '.join(SPLITS)} (default: all)")
    group.add_argument(
        "--tokens",
        choices=("grid", "pooled"),
        default="grid",
        help="of a vision backbone: its grid, or one embedding of the whole picture, as CLIP-GPT2 reads (%(default)s)",
    )
    group.add_argument("--missing", choices=("error", "drop"), default="error", help="if image files are missing")
    group.add_argument("--batch-size", type=positive, default=16, help="pictures at a time (%(default)s)")
    group.add_argument("--num-workers", type=count, default=0, help="processes that read pictures (%(default)s)")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    add_trust_option(group)


def _add_region_options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--regions", metavar="PATH", help="folder of <id>.npz or <id>.npy, or HDF5 file of <id> or <id>_features"
    )
    group.add_argument("--boxes", metavar="PATH", help="their boxes, to append and to sort by: <id>.npy or <id>_boxes")
    group.add_argument("--image-sizes", metavar="FILE", help="JSON of the pictures' sizes (cocotalk.json, COCO's)")
    group.add_argument("--norm", choices=NORMS, default="none", help="l2: divide each region's vector by its length")


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
        if str(name).replace("-", "_") == "trust_remote_code":
            raise ValueError(f"--config {known.config}: {name} is not for a file; give it on the command line")
        values = value if isinstance(value, list) else [value]
        words += [f"--{str(name).replace('_', '-')}", *map(str, values)]
    return [*words, *given]


def run(args: argparse.Namespace) -> int:
    """Compute the features; returns the exit status."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the summary, whatever a library has to say
            summary = _extract(args)
    except (ValueError, OSError, ImportError) as error:  # ImportError: `datasets` is an extra
        print_error("features", error)
        return failure_status(error)
    print(json.dumps(summary))
    return 1 if summary["errors"] else 0


def _extract(args: argparse.Namespace) -> dict[str, Any]:
    _check(args)
    summary = _from_pictures(args) if args.regions is None else _from_regions(args)
    return {
        "folder": summary.folder,
        "count": summary.count,
        "added": summary.added,
        "errors": len(summary.errors),
        "bytes": summary.num_bytes,
    }


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together, rather than to leave one of them unheard."""
    others = OF_REGIONS if args.regions is None else OF_PICTURES
    given = [name for name in others if getattr(args, name) != args.defaults[name]]
    if given:
        alone = "needs --regions" if args.regions is None else "does not go with --regions"
        raise ValueError(f"--{given[0].replace('_', '-')} {alone}")
    of_file = args.annotations is not None or args.image_root is not None
    if args.regions is None and args.data_dir is not None and of_file:
        raise ValueError("--data-dir does not go with --annotations and --image-root")
    has_source = args.data_dir is not None or None not in (args.annotations, args.image_root)
    if args.regions is None and (args.model is None or not has_source):
        raise ValueError("give --model, and --annotations with --image-root or --data-dir; or give --regions")
    if (args.boxes is None) != (args.image_sizes is None):
        raise ValueError("--boxes are in pixels and go with --image-sizes")


def _from_pictures(args: argparse.Namespace) -> Any:
    from ..data.captions.folder import load_folder_split
    from ..data.captions.karpathy import load_karpathy
    from ..data.features.store import DTYPES as TORCH_DTYPES
    from ..inference.extract_features import FeatureExtractor, write_features

    split = "all" if args.splits is None else "+".join(args.splits)
    if args.data_dir is not None:
        dataset = load_folder_split(args.data_dir, split, args.missing)
    else:
        dataset = load_karpathy(args.annotations, args.image_root, split, missing=args.missing)
    return write_features(
        FeatureExtractor.from_pretrained(args.model, args.device, args.tokens == "pooled", args.trust_remote_code),
        dataset,
        args.out,
        batch_size=args.batch_size,
        dtype=TORCH_DTYPES[args.dtype],
        shard_bytes=args.shard_size_mb * 1_000_000,
        num_workers=args.num_workers,
    )


def _from_regions(args: argparse.Namespace) -> Any:
    from ..data.features.regions import RegionFeatures, read_image_sizes, write_region_features
    from ..data.features.store import DTYPES as TORCH_DTYPES

    sizes = None if args.image_sizes is None else read_image_sizes(args.image_sizes)
    with RegionFeatures(args.regions, boxes=args.boxes, image_sizes=sizes, l2_norm=args.norm == "l2") as regions:
        return write_region_features(
            regions, args.out, dtype=TORCH_DTYPES[args.dtype], shard_bytes=args.shard_size_mb * 1_000_000
        )
