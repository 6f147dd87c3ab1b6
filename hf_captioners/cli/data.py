"""`hf-captioners data`: a data set of captioned pictures, checked, or exported for others.

`data check` prints a table, or with `--json` one JSON object: numbers, sizes, problems and remarks, and the fingerprint
by which trainings and evaluations name their data. Exit status 0, or 1 if there are problems, 2 if nothing could be
read. `data export` writes Parquet with the pictures inside into a folder, or pushes it to the Hub as one commit; stdout
has the folder or the address.
"""

import argparse
import contextlib
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from .common import UsageError, mistakes, positive, refuse_unread

_EPILOG = """\
examples:
  hf-captioners data check dataset_coco.json --image-root coco
  hf-captioners data check my_pictures --json > report.json
  hf-captioners data check "shards/{000000..000113}.tar"
  hf-captioners data check --dataset org/name
  hf-captioners data export dataset_flickr8k.json --image-root images --out flickr8k
  hf-captioners data export my_pictures --out me/my-pictures --private"""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
ON_BAD_ROW = ("error", "skip")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "data",
        help="check a data set of captioned pictures, or export it for others",
        description="Check a data set of captioned pictures before training on it, or export it as Parquet.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    check = actions.add_parser("check", help="numbers, sizes, broken pictures and captions, leaks, fingerprint")
    _add_source(check)
    check.add_argument("--json", action="store_true", help="write JSON instead of a table")
    check.set_defaults(run=run_check)
    export = actions.add_parser("export", help="write Parquet with the pictures inside, for load_dataset")
    _add_source(export)
    export.add_argument("--out", required=True, metavar="DIR|ORG/NAME", help="folder to make, or data set on the Hub "
                        "(./a/b is a folder)")  # fmt: skip
    export.add_argument("--private", action="store_true", help="make a new data set on the Hub private")
    export.add_argument("--shard-size-mb", type=positive, default=500, help="size of a file (%(default)s)")
    export.add_argument(
        "--on-bad-row",
        choices=ON_BAD_ROW,
        default="error",
        help="skip: leave out, log and count rows that cannot be used (%(default)s)",
    )
    export.set_defaults(run=run_export)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="a file of captions in any layout that training "
                        "reads, a folder of captioned pictures, or tars as shards/{000000..000113}.tar")  # fmt: skip
    parser.add_argument("--image-root", "--image_root", metavar="DIR", help="folder of the pictures of a file")
    group = parser.add_argument_group("a data set of the Hub in the place of SOURCE")
    group.add_argument("--dataset", metavar="NAME", help="org/name, or a folder that datasets.load_dataset reads")
    group.add_argument("--dataset-config", metavar="NAME", help="its configuration, where it has several")
    group.add_argument("--image-column", metavar="NAME", default="image", help="its pictures (%(default)s)")
    group.add_argument("--caption-column", metavar="NAME", nargs="+", default=[], help="its captions (the first of "
                       "captions, caption, text, sentences_raw and sentences)")  # fmt: skip
    group.add_argument("--id-column", metavar="NAME", help="ids of its pictures; rows of one become one (image_id)")


def _load(args: argparse.Namespace, bad_rows: Any) -> tuple[str, dict[str, Any]]:
    """Name of the data, and its splits."""
    from ..data.captions.captioned import Columns
    from ..data.captions.splits import load_named_splits, load_splits

    if (args.source is None) == (args.dataset is None):
        raise ValueError("give SOURCE or --dataset, one of them")
    if args.dataset is None:
        of_hub = {name: bool(vars(args)[name]) for name in ("dataset_config", "caption_column", "id_column")}
        refuse_unread("they are of --dataset", image_column=args.image_column != "image", **of_hub)
        return args.source, load_splits(args.source, args.image_root, bad_rows)
    refuse_unread("--dataset has its own pictures", image_root=args.image_root is not None)
    columns = Columns(args.image_column, tuple(args.caption_column), args.id_column)
    return args.dataset, load_named_splits(args.dataset, args.dataset_config, columns, bad_rows)


def run_check(args: argparse.Namespace) -> int:
    """Check a data set; returns the exit status."""
    from ..data.printable import printable_json

    with mistakes(ValueError, OSError, ImportError), contextlib.redirect_stdout(sys.stderr):
        from ..data.bad_rows import BadRows
        from ..data.dataset_check import check_dataset

        bad_rows = BadRows("skip", log=False)
        name, splits = _load(args, bad_rows)
        report = check_dataset(name, splits, bad_rows.messages)
    print(printable_json(report.as_json()) if args.json else _as_table(report))
    return 1 if report.problems else 0


def _as_table(report: Any) -> str:
    from ..data.printable import printable

    lines = [f"{'split':<12} {'pictures':>10} {'captions':>10}"]
    lines += [
        f"{printable(name):<12} {row['images']:>10,} {row['captions']:>10,}" for name, row in report.splits.items()
    ]
    lines.append("")
    for name, size in report.sizes.items():
        lines.append(f"{name:<12} {size[0]:>10,} x {size[1]:,} pixels")
    words = report.captions
    lines.append(f"{'words':<12} {words['words']:>10} a caption, at most {words['longest']}; "
                 f"{words['vocabulary']:,} different ones")  # fmt: skip
    lines.append(f"{'fingerprint':<12} {report.fingerprint.hash:>10}")
    for title, findings in (
        ("problems", report.problems),
        ("remarks", [finding for finding in report.findings if not finding.is_problem]),
    ):
        lines += ["", f"{title}: none" if not findings else f"{title}:"]
        for finding in findings:
            lines.append(f"{finding.count:>10,}  {finding.what}")
            lines += [f"{'':>12}{printable(example)}" for example in finding.examples]
    return "\n".join(lines)


def run_export(args: argparse.Namespace) -> int:
    """Export a data set; returns the exit status."""
    to_hub = _HUB_NAME.fullmatch(args.out) is not None and not Path(args.out).parent.is_dir()
    if args.private and not to_hub:
        raise UsageError(f"--private is of the Hub, and --out {args.out} is a folder")
    with mistakes(ValueError, OSError, ImportError, RuntimeError), contextlib.redirect_stdout(sys.stderr):
        if not to_hub:
            exported = _export(args, args.out, None)
            place = str(exported.folder)
        else:
            from ..hub.push_data import check_data_rights, push_data

            check_data_rights(args.out)
            with tempfile.TemporaryDirectory() as temporary:
                exported = _export(args, Path(temporary) / "data", args.out)
                place = push_data(exported.folder, args.out, private=args.private or None).url
    print(json.dumps(exported.splits), file=sys.stderr)
    print(place)
    return 0


def _export(args: argparse.Namespace, out: Any, name: str | None) -> Any:
    from ..data.bad_rows import BadRows
    from ..data.captions.export import export_dataset
    from ..data.image_check import check_images

    bad_rows = BadRows(args.on_bad_row)
    source, splits = _load(args, bad_rows)
    for split, rows in splits.items():
        if "image" in rows.column_names:
            splits[split] = check_images(rows, f"{source}: pictures of {split}", bad_rows)
    bad_rows.conclude(source)
    return export_dataset(splits, out, name, args.shard_size_mb * 1_000_000)
