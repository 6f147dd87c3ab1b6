"""Sources of `hf-captioners caption`: picture files and archives, or data sets in their place."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .caption_out import Sources, share_of_process
from .common import UsageError, mistakes, needed, refuse_unread

_OF_STREAMS = ("dataset_config", "id_column")


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """The paths, and the options of data sets in their place."""
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="a picture, a folder or archive (zip, tar) or Parquet file of pictures, of this machine or an address "
        "(https, hf, s3, …), or several as shards/{000000..000999}.tar",
    )
    parser.add_argument("--no-recursive", dest="recursive", action="store_false", help="leave sub-folders out")
    parser.add_argument(
        "--image-column", metavar="NAME", default="image", help="of Parquet files and of --dataset (%(default)s)"
    )
    stream = parser.add_argument_group("a data set of the Hub in the place of paths, streaming")
    stream.add_argument(
        "--dataset", metavar="NAME", help="on the Hub, as org/name, or a folder that datasets.load_dataset reads"
    )
    stream.add_argument("--dataset-config", metavar="NAME", help="its configuration, where it has several")
    stream.add_argument(
        "--id-column",
        metavar="NAME",
        help="names of its pictures (image_id, if it has that column; else the number of file and row, as 3/17)",
    )
    dataset = parser.add_argument_group("a data set with references in the place of paths; its records have `image_id`")
    dataset.add_argument(
        "--annotations",
        metavar="FILE",
        help="file of captions: Karpathy's or COCO's JSON, token files, JSONL, CSV, Parquet",
    )
    dataset.add_argument(
        "--data-dir", "--data_dir", metavar="DIR", help="or a folder as training reads it, with its own pictures"
    )
    dataset.add_argument("--labels", metavar="FILE", help="label file of the SATIC code, for its cocotalk.json")
    dataset.add_argument(
        "--split",
        help="such as val or train+restval, or a file with names of pictures (default: train+restval of Karpathy's "
        "layout, all of the others; train of --dataset)",
    )
    source = dataset.add_mutually_exclusive_group()
    source.add_argument("--image-root", metavar="DIR", help="folder of its pictures")
    source.add_argument("--features", nargs="+", metavar="DIR", help="folders of their features, as `features` writes "
                        "them")  # fmt: skip


def open_sources(
    args: argparse.Namespace, check_names: Callable[[Iterable[Any]], None] | None
) -> tuple[Sources, int | None]:
    """Open what is to be captioned.

    Args:
        args (`argparse.Namespace`): of the command line.
        check_names (`Callable[[Iterable], None]`, *optional*): is given the names of picture files before any work.

    Returns:
        `tuple`: function that reads the rows, and their number, if it is known.

    Raises:
        UsageError: options that do not go together, or nothing to caption.
    """
    if args.dataset is not None:
        return _sources_of_stream(args)
    refuse_unread("they are of --dataset", **{name: vars(args)[name] is not None for name in _OF_STREAMS})
    if args.annotations is not None or args.data_dir is not None:
        of_paths = {"no_recursive": not args.recursive, "image_column": args.image_column != "image"}
        refuse_unread("a data set has pictures of its own", **of_paths)
        return _sources_of_dataset(args)
    return _sources_of_paths(args, check_names)


def _sources_of_paths(
    args: argparse.Namespace, check_names: Callable[[Iterable[Any]], None] | None
) -> tuple[Sources, int | None]:
    if args.sentences:
        raise UsageError("--sentences are of a data set's pictures, and go with --annotations or --data-dir")
    if args.features or args.image_root or not args.paths:
        swallowed = "; --model takes all words up to the next option, so give paths before it" if args.model[1:] else ""
        raise UsageError(f"give paths, --dataset, or --annotations with --image-root or --features{swallowed}")
    refuse_unread("paths have no splits and labels", split=args.split is not None, labels=args.labels is not None)
    from ..data.remote_files import is_remote
    from ..inference.image_archives import image_names, image_rows, is_archive
    from ..inference.image_files import LeftOutFiles, find_images

    # Listed twice, to know the number without keeping a million paths; archives of other machines are read only once.
    left_out, column = LeftOutFiles(), args.image_column
    is_far = any(is_remote(path) and is_archive(path) for path in args.paths)
    listed = () if is_far else image_names(find_images(args.paths, args.recursive, left_out), left_out, column)
    count = None if is_far else sum(1 for _ in listed)
    if count == 0:
        raise UsageError(f"no pictures in {', '.join(args.paths)}{f' ({left_out})' if left_out else ''}")
    if left_out:
        print(f"hf-captioners caption: {left_out}", file=sys.stderr)
    if check_names is not None:
        check_names(image_names(find_images(args.paths, args.recursive), LeftOutFiles(), column))

    def read(wanted: Callable[[Any], bool]) -> Iterator[Iterator[Mapping[str, Any]]]:
        return (image_rows([path], wanted, column) for path in find_images(args.paths, args.recursive))

    return read, count


def _sources_of_stream(args: argparse.Namespace) -> tuple[Sources, int | None]:
    """Function that reads the rows of `--dataset`, and their number, if its description has it."""
    others = ("annotations", "data_dir", "labels", "image_root", "features", "sentences", "coco_results")
    given = {name: bool(vars(args)[name]) for name in others}
    refuse_unread("--dataset has its own pictures", **given, no_recursive=not args.recursive)
    if args.paths:
        raise UsageError("give paths or --dataset, one of them")
    with needed():
        from ..data.captions.captioned import load_named

    from ..inference.image_streams import ImageStream

    with mistakes(ValueError):
        rows = load_named(args.dataset, args.dataset_config, args.split, streaming=True)
        try:
            stream = ImageStream(rows, args.image_column, args.id_column, share_of_process())
        except ValueError as error:
            raise ValueError(f"--dataset {args.dataset}: {error}") from error
    return stream.sources, stream.count


def _sources_of_dataset(args: argparse.Namespace) -> tuple[Sources, int]:
    """Function that reads a data set's rows, from its picture files or from cached features; and their number."""
    if args.paths or (args.annotations is not None and args.data_dir is not None):
        raise UsageError("give paths, or --annotations, or --data-dir, one of them")
    from ..data.captions.attached import attach_sentences, parse_sentences
    from ..data.captions.load import has_own_images
    from ..data.features.joined_stores import open_features
    from ..data.rows import attach_features, undecoded

    with mistakes(ValueError, OSError):
        if args.data_dir is None and not (args.image_root or args.features or has_own_images(args.annotations)):
            raise UsageError("--annotations goes with --image-root or --features, without paths")
        sentences = parse_sentences(args.sentences)
        rows = _rows(args)
        for column, path in sentences.items():
            rows = attach_sentences(rows, path, column)
        rows = attach_features(rows, open_features(args.features)) if args.features else undecoded(rows)

    def read(wanted: Callable[[Any], bool]) -> Iterator[Iterator[Mapping[str, Any]]]:
        return (iter([rows[index]]) for index in range(len(rows)))

    return read, len(rows)


def _rows(args: argparse.Namespace) -> Any:
    from ..data.captions.load import load_captions

    if args.data_dir is not None:
        if args.labels or args.image_root:
            raise ValueError("--data-dir has its own pictures and captions, without --image-root and --labels")
    elif args.labels and args.image_root:
        raise ValueError("--labels goes with --features: the rows of cocotalk.json have no pictures")
    return load_captions(args.data_dir or args.annotations, args.image_root, args.split, labels=args.labels)
