"""`hf-captioners features`: image features of a captioned dataset, computed once for training.

They come from a backbone (`--model`), from the bottom-up detector (`--detector`), or from the files of one
(`--regions`).

stdout has one JSON line at the end: `{"folder", "count", "added", "errors", "bytes"}`; progress and warnings go to
stderr. Exit status 0 if every picture has features, 1 if some could not be read (named on stderr and in `index.json`;
with `--on-bad-row skip` 0), 2 if nothing could be done because of what was asked for, 3 if a disk is full; the same
command then goes on.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .common import UsageError, add_trust_option, count, mistakes, positive
from .recipe import read_recipe
from .regions import add_detector_options, load_detector

# Named again here because the modules that own them import torch and datasets, too much for `--help`.
SPLITS = ("train", "restval", "val", "test")
DTYPES = ("float16", "bfloat16", "float32")

NORMS = ("none", "l2")

FORMATS = ("store", "npz", "tsv")
ON_BAD_ROW = ("error", "skip")

_OF_A_DATASET = (
    *("annotations", "image_root", "data_dir", "splits", "on_bad_row"),
    *("dataset", "dataset_config", "image_column", "id_column"),
    *("num_workers", "device", "trust_remote_code"),
)
# options by what the features come from
OPTIONS = {
    "model": (*_OF_A_DATASET, "tokens", "batch_size", "backbone_dtype"),
    "detector": (
        *(*_OF_A_DATASET, "pictures", "format", "append_boxes", "show"),
        *("min_regions", "max_regions", "max_proposals", "res5_dtype"),
    ),
    "regions": ("boxes", "image_sizes", "norm", "max_regions", "on_bad_row"),
}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "features",
        help="compute the image features of a dataset once, for training",
        description="Run the backbone of a captioner, or any vision backbone of transformers, over all pictures of a "
        "dataset and store their features; or find regions with the bottom-up detector and store theirs; or store "
        "region features that other projects keep in TSV, LMDB, HDF5, pickles or folders of .npz files. An "
        "interrupted run continues where it was.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of these options; the command line wins")
    parser.add_argument("--out", required=True, help="folder to write; with --format tsv the file")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="precision in the store (%(default)s)")
    parser.add_argument("--shard-size-mb", type=positive, default=500, help="size of a file (%(default)s)")
    parser.add_argument(
        "--on-bad-row",
        choices=ON_BAD_ROW,
        default="error",
        help="skip: leave out, log and count pictures, rows and regions that cannot be used, and exit with 0 "
        "(%(default)s)",
    )
    _add_backbone_options(parser.add_argument_group("features that a backbone computes"))
    _add_detector_options(parser.add_argument_group("regions that a detector finds, in their place"))
    _add_region_options(parser.add_argument_group("region features of other projects, in their place"))
    defaults = {name: parser.get_default(name) for names in OPTIONS.values() for name in names}
    parser.set_defaults(run=run, defaults=defaults)
    return parser


def _add_backbone_options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--model", help="folder or Hub name of a captioner, a vision backbone or a CLIP")
    group.add_argument(
        "--annotations", help="file of captions: Karpathy's or COCO's JSON, token files, JSONL, CSV, Parquet"
    )
    group.add_argument("--image-root", help="folder of the pictures: ROOT/[filepath/]filename")
    group.add_argument(
        "--data-dir",
        "--data_dir",
        metavar="DIR",
        help="instead of these two: a folder as training reads it, with train/ and validation/",
    )
    group.add_argument("--dataset", metavar="NAME", help="or a data set of the Hub, or a folder of Parquet files")
    group.add_argument("--dataset-config", metavar="NAME", help="its configuration, where it has several")
    group.add_argument("--image-column", metavar="NAME", default="image", help="of --dataset (%(default)s)")
    group.add_argument("--id-column", metavar="NAME", help="of --dataset; ids are those that training gives its rows")
    group.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help=f"some of {', '.join(SPLITS)}, or a file of names (default: all)"
    )
    group.add_argument(
        "--tokens",
        choices=("grid", "pooled"),
        default="grid",
        help="of a vision backbone: its grid, or one embedding of the whole picture, as CLIP-GPT2 reads (%(default)s)",
    )
    group.add_argument("--batch-size", type=positive, default=16, help="pictures at a time (%(default)s)")
    group.add_argument(
        "--backbone-dtype", choices=DTYPES, help="precision that it computes in (default: that of its weights)"
    )
    group.add_argument("--num-workers", type=count, default=0, help="processes that read pictures (default: threads)")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    add_trust_option(group)


def _add_detector_options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "pictures",
        nargs="*",
        default=(),
        metavar="PICTURE",
        help="files, folders and archives, instead of --annotations",
    )
    group.add_argument("--detector", metavar="MODEL", help="folder or Hub name of a bottom_up detector")
    group.add_argument(
        "--format",
        choices=FORMATS,
        default="store",
        help="a store with the boxes beside the features, <id>.npz files, or the TSV of Anderson et al. (%(default)s)",
    )
    group.add_argument("--append-boxes", action="store_true", help="into the features of a store, as SATIC's use_box")
    group.add_argument("--show", type=Path, metavar="DIR", help="also draw the regions over every picture")
    add_detector_options(group)


def _add_region_options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--regions",
        nargs="+",
        metavar="PATH",
        help="bottom-up .tsv, LMDB, pickled lists (.pkl), folder of <id>.npz or <id>.npy, or HDF5 file of <id> or "
        "<id>_features; of several the union. More regions than --max-regions (100) are a bad row",
    )
    group.add_argument(
        "--boxes",
        nargs="+",
        metavar="PATH",
        help="their boxes, to append and to sort by: the same file, or <id>.npy or <id>_boxes",
    )
    group.add_argument(
        "--image-sizes", metavar="FILE", help="JSON of the pictures' sizes (cocotalk.json, COCO's); a .tsv has them"
    )
    group.add_argument("--norm", choices=NORMS, default="none", help="l2: divide each region's vector by its length")


def with_config(argv: Sequence[str]) -> list[str]:
    """Replace `--config FILE` by the options of that YAML file, in front of the others: the command line wins.

    They are then parsed like those of the command line, with the same checks and messages.

    Args:
        argv (`Sequence[str]`): the verb and its arguments.

    Returns:
        `list[str]`: without `--config`.

    Raises:
        UsageError: the file cannot be read or is no mapping of options.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config")
    known, (verb, *rest) = parser.parse_known_args(argv)
    if known.config is None:
        return list(argv)
    words = [verb]
    for name, value in read_recipe(known.config).items():
        if str(name).replace("-", "_") == "trust_remote_code":
            raise UsageError(f"--config {known.config}: {name} is not for a file; give it on the command line")
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, (list, dict)) for one in values):
            raise UsageError(f"--config {known.config}: {name}: expected a text, a number or a list of these")
        if value is None or value is False:  # as if it did not stand there
            continue
        words += [f"--{str(name).replace('_', '-')}", *map(str, values if value is not True else ())]
    return [*words, *rest]


def run(args: argparse.Namespace) -> int:
    """Compute the features; returns the exit status."""
    # ImportError: `datasets` is an extra; stdout is for the summary, whatever a library has to say
    with mistakes(ValueError, OSError, ImportError), contextlib.redirect_stdout(sys.stderr):
        summary = _extract(args)
    print(json.dumps(summary))
    return 1 if summary["errors"] and args.on_bad_row == "error" else 0


def _extract(args: argparse.Namespace) -> dict[str, Any]:
    source = _check(args)
    summary = {"model": _from_backbone, "detector": _from_detector, "regions": _from_regions}[source](args)
    return {
        "folder": summary.folder,
        "count": summary.count,
        "added": summary.added,
        "errors": len(summary.errors),
        "bytes": summary.num_bytes,
    }


def _check(args: argparse.Namespace) -> str:
    """Refuse options that do not go together, rather than to ignore one of them; returns the source."""
    first, *others = [name for name in OPTIONS if getattr(args, name) is not None] or ["model"]
    if others:
        raise ValueError(f"--{first} does not go with --{others[0]}")
    for name, default in args.defaults.items():
        if getattr(args, name) != default and name not in OPTIONS[first]:
            owners = [owner for owner, names in OPTIONS.items() if name in names]
            option = "a picture" if name == "pictures" else f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{option} {f'needs --{owners[0]}' if len(owners) == 1 else f'does not go with --{first}'}"
            )
    of_file = args.annotations is not None or args.image_root is not None
    if args.data_dir is not None and of_file:
        raise ValueError("--data-dir does not go with --annotations and --image-root")
    has_dataset = args.data_dir is not None or args.dataset is not None or _has_images(args)
    if args.dataset is None:
        for name in ("dataset_config", "image_column", "id_column"):
            if getattr(args, name) != args.defaults[name]:
                raise ValueError(f"--{name.replace('_', '-')} is of --dataset")
    elif args.data_dir is not None or of_file:
        raise ValueError("--dataset does not go with --data-dir, --annotations and --image-root")
    if first == "model" and (args.model is None or not has_dataset):
        raise ValueError(
            "give --model, and --annotations with --image-root, --data-dir or --dataset; or give --detector; or give "
            "--regions"
        )
    if first == "detector" and has_dataset == bool(args.pictures):
        raise ValueError("--detector needs pictures, or --annotations with --image-root, --data-dir or --dataset")
    if args.boxes is None and args.image_sizes is not None:
        raise ValueError("--image-sizes are for --boxes, which are in pixels")
    return first


def _has_images(args: argparse.Namespace) -> bool:
    """Tell whether `--annotations` come with pictures."""
    if args.annotations is None or args.image_root is not None:
        return args.annotations is not None
    from ..data.captions.load import has_own_images

    return has_own_images(args.annotations)


def _dataset(args: argparse.Namespace) -> Any:
    if args.dataset is not None:
        return _named_dataset(args)
    from ..data.bad_rows import BadRows
    from ..data.captions.load import load_captions

    split = "all" if args.splits is None else "+".join(args.splits)
    return load_captions(args.data_dir or args.annotations, args.image_root, split, bad_rows=BadRows(args.on_bad_row))


def _named_dataset(args: argparse.Namespace) -> Any:
    """The pictures of splits of a data set of the Hub, with the ids that training gives them."""
    from datasets import concatenate_datasets

    from ..data.bad_rows import BadRows
    from ..data.captions.captioned import Columns, captioned, load_named, split_names

    columns, bad_rows = Columns(args.image_column, image_id=args.id_column), BadRows(args.on_bad_row)
    splits = args.splits or split_names(args.dataset, args.dataset_config)
    named = (load_named(args.dataset, args.dataset_config, split) for split in splits)
    parts = [captioned(rows, columns, args.dataset, bad_rows=bad_rows) for rows in named]
    return concatenate_datasets([part.select_columns(["image", "image_id"]) for part in parts])


def _from_backbone(args: argparse.Namespace) -> Any:
    from ..data.features.store import DTYPES as TORCH_DTYPES
    from ..inference.extract_features import FeatureExtractor, write_features

    precision = None if args.backbone_dtype is None else TORCH_DTYPES[args.backbone_dtype]
    extractor = FeatureExtractor.from_pretrained(
        args.model, args.device, args.tokens == "pooled", args.trust_remote_code, precision
    )
    return write_features(
        extractor,
        _dataset(args),
        args.out,
        batch_size=args.batch_size,
        dtype=TORCH_DTYPES[args.dtype],
        shard_bytes=args.shard_size_mb * 1_000_000,
        num_workers=args.num_workers,
    )


def _from_detector(args: argparse.Namespace) -> Any:
    from ..data.features.store import DTYPES as TORCH_DTYPES
    from ..inference.detect_regions import write_detected_regions

    return write_detected_regions(
        load_detector(args),
        _images(args),
        args.out,
        layout=args.format,
        append_boxes=args.append_boxes,
        dtype=TORCH_DTYPES[args.dtype],
        shard_bytes=args.shard_size_mb * 1_000_000,
        num_workers=args.num_workers,
        show=None if args.show is None else partial(_draw, args.show),
    )


def _images(args: argparse.Namespace) -> list[tuple[Any, Any]]:
    """Ids and pictures, of files or of a dataset."""
    if args.pictures:
        from ..data.archive import archive_suffix, unpacked
        from ..data.printable import printable
        from ..inference.detect_regions import images_by_id
        from ..inference.image_files import LeftOutFiles, find_images, is_url

        left_out = LeftOutFiles()
        paths = [unpacked(path) if archive_suffix(path) and not is_url(path) else path for path in args.pictures]
        images: list[tuple[Any, Any]] = images_by_id(find_images(paths, left_out=left_out))
        if left_out:
            print(f"hf-captioners features: {printable(left_out)}", file=sys.stderr)
        return images
    import datasets

    rows = _dataset(args).select_columns(["image_id", "image"]).cast_column("image", datasets.Image(decode=False))
    return [(row["image_id"], row["image"]) for row in rows]


def _draw(folder: Path, image_id: Any, image: Any, regions: Any) -> None:
    from ..reports.region_images import draw_best, save_regions

    save_regions(draw_best(image, regions.records()), folder / f"{image_id}.jpg")


def _from_regions(args: argparse.Namespace) -> Any:
    from ..conversion.region_sources import open_region_features
    from ..data.bad_rows import BadRows
    from ..data.features.regions import MAX_REGIONS, read_image_sizes, write_region_features
    from ..data.features.store import DTYPES as TORCH_DTYPES

    bad_rows = BadRows(args.on_bad_row)
    options = {
        "boxes": args.boxes,
        "image_sizes": None if args.image_sizes is None else read_image_sizes(args.image_sizes),
        "l2_norm": args.norm == "l2",
        "max_regions": args.max_regions or MAX_REGIONS,
    }
    with open_region_features(args.regions, bad_rows=bad_rows, **options) as regions:
        return write_region_features(
            regions,
            args.out,
            dtype=TORCH_DTYPES[args.dtype],
            shard_bytes=args.shard_size_mb * 1_000_000,
            bad_rows=bad_rows,
        )
